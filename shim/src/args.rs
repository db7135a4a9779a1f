//! The command line, as Go's flag package reads it and containerd writes it.
//!
//! It must accept every flag of every containerd from 1.6 on, used or not.

pub use containerd_shim::Flags;
use containerd_shim_rs::error::{Error, Result};

/// Parses the arguments after the program's name.
pub fn parse(args: impl Iterator<Item = String>) -> Result<Flags> {
    let flags = containerd_shim::parse(&normalise(args))
        .map_err(|error| Error::invalid(format!("{error}; {}", crate::USAGE)))?;
    // Both become parts of paths; containerd itself allows neither a slash nor a dot alone.
    for (name, value) in [("-id", &flags.id), ("-namespace", &flags.namespace)] {
        if value.contains(['/', '\0']) || value == "." || value == ".." {
            return Err(Error::invalid(format!("{name} {value:?} is not a name")));
        }
    }
    Ok(flags)
}

/// The id and the namespace, where an action cannot do without.
pub fn identity(flags: &Flags) -> Result<(&str, &str)> {
    if flags.id.is_empty() || flags.namespace.is_empty() {
        return Err(Error::invalid(format!("-id and -namespace are required; {}", crate::USAGE)));
    }
    Ok((&flags.id, &flags.namespace))
}

/// Spells an action that is written as a flag as an action, and leaves out `-debug-socket`, which
/// the parser does not know.
fn normalise(mut args: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut action = None;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-start" | "--start" => action = Some("start"),
            "-delete" | "--delete" => action = Some("delete"),
            "-debug-socket" | "--debug-socket" => drop(args.next()),
            _ if arg.starts_with("-debug-socket=") || arg.starts_with("--debug-socket=") => {}
            _ => kept.push(arg),
        }
    }
    // At the end: Go's rule is that no flag follows the first word.
    kept.extend(action.map(String::from));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Flags> {
        parse(words.split_whitespace().map(String::from))
    }

    #[test]
    fn what_containerd_writes() {
        let flags = parse_words(
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a-b.c -debug start",
        )
        .unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str()), ("k8s.io", "a-b.c"));
        assert_eq!((flags.action.as_str(), flags.debug), ("start", true));
        let flags =
            parse_words("-socket /s -debug-socket /d --debug-socket=/e -bundle /b -version")
                .unwrap();
        assert_eq!((flags.bundle.as_str(), flags.version, flags.action.as_str()), ("/b", true, ""));
    }

    #[test]
    fn an_action_may_be_written_as_a_flag_anywhere() {
        for (words, action) in [
            ("--start -id x", "start"),
            ("-id x -start", "start"),
            ("-delete -id x", "delete"),
            ("-id x --delete", "delete"),
        ] {
            let flags = parse_words(words).unwrap();
            assert_eq!((flags.action.as_str(), flags.id.as_str()), (action, "x"), "{words}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for words in ["-id ../x start", "-id .. start", "-namespace a/b start", "-nonsense"] {
            assert!(parse_words(words).is_err(), "{words}");
        }
    }
}
