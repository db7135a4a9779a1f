//! Values in GVariant's text format, as annotations have them: `uint64 5`, `'text'`, `['a', 'b']`.
//!
//! What no property of a unit needs (tuples, dictionaries, variants) is refused, never guessed at.

use zvariant::{Array, ObjectPath, Signature, Value};

use crate::error::{Error, Result};

/// The types of single values: keyword, signature.
const TYPES: [(&str, char); 11] = [
    ("boolean", 'b'),
    ("byte", 'y'),
    ("int16", 'n'),
    ("uint16", 'q'),
    ("int32", 'i'),
    ("uint32", 'u'),
    ("int64", 'x'),
    ("uint64", 't'),
    ("double", 'd'),
    ("string", 's'),
    ("objectpath", 'o'),
];

/// Types and lists in each other. The text comes from a pod and the stack is finite.
const DEEPEST: u8 = 8;

/// Reads one value; nothing may follow it.
pub(super) fn parse(text: &str) -> Result<Value<'static>> {
    let mut rest = text;
    let value = value(&mut rest, None, DEEPEST)?;
    match rest.trim_start() {
        "" => Ok(value),
        more => Err(Error::invalid(format!("{more:?} follows the value"))),
    }
}

fn value(rest: &mut &str, given: Option<&str>, depth: u8) -> Result<Value<'static>> {
    let depth = depth.checked_sub(1).ok_or_else(|| Error::invalid("it is nested too deeply"))?;
    *rest = rest.trim_start();
    if let Some(after) = rest.strip_prefix('@') {
        let end = after.find(char::is_whitespace).unwrap_or(after.len());
        let (signature, after) = after.split_at(end);
        *rest = after;
        return value(rest, Some(signature), depth);
    }
    if let Some(after) = rest.strip_prefix('[') {
        *rest = after;
        return array(rest, given, depth);
    }
    if rest.starts_with(['\'', '"']) {
        return string(rest).and_then(|text| single(&text, given.unwrap_or("s")));
    }
    if rest.starts_with(['(', '{', '<', 'b']) && !rest.starts_with("bo") && !rest.starts_with("by")
    {
        return Err(Error::invalid(format!(
            "{rest:?}: tuples, dictionaries, variants and byte strings are not supported"
        )));
    }
    let end = rest.find(|c: char| c.is_whitespace() || ",]".contains(c)).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    if let Some((_, signature)) = TYPES.iter().find(|(keyword, _)| *keyword == word) {
        return value(rest, Some(&signature.to_string()), depth);
    }
    let natural = match word {
        "true" | "false" => "b",
        word if word.contains('.') || word == "inf" || word == "nan" => "d",
        _ => "i",
    };
    single(word, given.unwrap_or(natural))
}

fn array(rest: &mut &str, given: Option<&str>, depth: u8) -> Result<Value<'static>> {
    let element = given.map(|given| given.strip_prefix('a').ok_or_else(|| mismatch("[", given)));
    let element = element.transpose()?;
    let mut values = Vec::new();
    loop {
        *rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(']') {
            *rest = after;
            break;
        }
        if !values.is_empty() {
            let comma = rest.strip_prefix(',');
            *rest = comma.ok_or_else(|| Error::invalid(format!("{rest:?}: a comma is missing")))?;
        }
        values.push(value(rest, element, depth)?);
    }
    let signature = match (element, values.first()) {
        (Some(element), _) => Signature::try_from(element)
            .map_err(|_| Error::invalid(format!("{element:?} is not a type")))?,
        (None, Some(first)) => first.value_signature().clone(),
        (None, None) => return Err(Error::invalid("an empty list needs its type: @as []")),
    };
    let mut array = Array::new(&signature);
    for value in values {
        array.append(value).map_err(|error| Error::invalid(error.to_string()))?;
    }
    Ok(Value::Array(array))
}

/// A quoted string, without its quotes.
fn string(rest: &mut &str) -> Result<String> {
    let open = || Error::invalid("a string without its end");
    let mut chars = rest.char_indices();
    let (_, quote) = chars.next().ok_or_else(open)?;
    let mut text = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => {
                *rest = &rest[at + 1..];
                return Ok(text);
            }
            '\\' => match chars.next().ok_or_else(open)?.1 {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                c if c.is_alphanumeric() => {
                    return Err(Error::invalid(format!("\"\\{c}\" is not supported")));
                }
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
    Err(open())
}

fn mismatch(word: &str, signature: &str) -> Error {
    Error::invalid(format!("{word:?} is not of type {signature:?}"))
}

/// One that holds no others.
fn single(word: &str, signature: &str) -> Result<Value<'static>> {
    fn number<T: TryFrom<i128>>(word: &str) -> Option<T> {
        let (sign, digits) = match word.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, word.strip_prefix('+').unwrap_or(word)),
        };
        let digits = digits.to_ascii_lowercase();
        let number = match (digits.strip_prefix("0x"), digits.strip_prefix('0')) {
            (Some(hex), _) => i128::from_str_radix(hex, 16),
            (None, Some(octal)) if !octal.is_empty() => i128::from_str_radix(octal, 8),
            _ => digits.parse(),
        };
        T::try_from(sign * number.ok()?).ok()
    }
    let value = match signature {
        "b" => word.parse().ok().map(Value::Bool),
        "y" => number(word).map(Value::U8),
        "n" => number(word).map(Value::I16),
        "q" => number(word).map(Value::U16),
        "i" => number(word).map(Value::I32),
        "u" => number(word).map(Value::U32),
        "x" => number(word).map(Value::I64),
        "t" => number(word).map(Value::U64),
        "d" => word.parse().ok().map(Value::F64),
        "s" => Some(Value::from(word.to_owned())),
        "o" => ObjectPath::try_from(word.to_owned()).ok().map(Value::from),
        _ => None,
    };
    value.ok_or_else(|| mismatch(word, signature))
}
