//! ARCHITECTURE.md's table of the OCI runtime specification: no field of the specification is
//! missing in it, and every test that it names exists.
//!
//! `data/every-field.json` has each field for Linux of version 1.3 once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One row: the field, what becomes of it, and the tests that show it.
struct Row {
    fields: Vec<String>,
    tests: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the table beneath `## OCI runtime specification`.
fn table() -> Vec<Row> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("\n## OCI runtime specification\n").unwrap();
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        assert_eq!(cells.len(), 3, "{line}");
        Row { fields: quoted(cells[0]), tests: quoted(cells[2]) }
    };
    rows.map(row).collect()
}

/// `process.user.uid` for each value; the keys of a map that the spec leaves to its user are cut.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    let free = ["annotations", "linux.sysctl", "linux.resources.unified", "linux.timeOffsets"];
    match value {
        Value::Object(map) if !free.contains(&path) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                fields(value, &path, found);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().for_each(|value| fields(value, path, found));
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

#[test]
fn every_field_of_the_specification_is_in_the_table() {
    let json = fs::read(root().join("tests/data/every-field.json")).unwrap();
    let mut found = BTreeSet::new();
    fields(&serde_json::from_slice(&json).unwrap(), "", &mut found);
    assert!(found.len() > 100);
    let listed: Vec<String> = table().into_iter().flat_map(|row| row.fields).collect();
    let covers = |row: &str, field: &str| {
        field.strip_prefix(row).is_some_and(|f| f.is_empty() || f.starts_with('.'))
    };
    for field in &found {
        assert!(listed.iter().any(|row| covers(row, field)), "{field} is not in the table");
    }
    for row in &listed {
        assert!(found.iter().any(|field| covers(row, field)), "{row} is no field");
    }
}

/// A field that the types do not know would be ignored in silence.
#[test]
fn the_types_know_every_field() {
    let json = fs::read(root().join("tests/data/every-field.json")).unwrap();
    let (spec, warnings) = containerd_shim_rs::plan::spec::parse(&json).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let (mut wanted, mut known) = (BTreeSet::new(), BTreeSet::new());
    fields(&serde_json::from_slice(&json).unwrap(), "", &mut wanted);
    fields(&serde_json::to_value(spec).unwrap(), "", &mut known);
    assert_eq!(wanted.difference(&known).collect::<Vec<_>>(), Vec::<&String>::new());
}

fn sources(dir: PathBuf, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_test_in_the_table_exists() {
    let mut text = String::new();
    for dir in ["src", "tests", "shim"] {
        sources(root().join(dir), &mut text);
    }
    for row in table() {
        assert!(!row.tests.is_empty(), "{:?} has no test", row.fields);
        for test in row.tests {
            let found = match test.strip_prefix("plans/") {
                Some(golden) => root().join(format!("tests/data/plans/{golden}.txt")).exists(),
                None => text.contains(&format!("fn {test}(")),
            };
            assert!(found, "{:?}: there is no test {test:?}", row.fields);
        }
    }
}
