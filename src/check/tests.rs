//! The table as text, and what is said of it.

use super::*;

fn table(rows: Vec<Row>) -> Table {
    Table { head: "Linux 6.1 x86_64, asked as root".into(), rows }
}

#[test]
fn a_table_is_aligned_and_one_long_entry_does_not_widen_it() {
    let long = "a".repeat(WIDEST + 1);
    let text = table(vec![
        row("openat2", yes(), true, "no container"),
        row("clone3", Found::No("ENOSYS".into()), false, "clone(2)"),
        row("cgroups", Found::Yes(long.clone()), true, "no pod"),
        row("fsopen", Found::Unknown("needs root".into()), true, ""),
    ])
    .to_string();
    let expected = format!(
        "Linux 6.1 x86_64, asked as root\n\n\
         feature  found                needed  without it\n\
         openat2  yes                  yes     no container\n\
         clone3   no: ENOSYS           no      clone(2)\n\
         cgroups  {long}  yes     no pod\n\
         fsopen   unknown: needs root  yes\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn only_what_is_needed_counts() {
    let no = || Found::No("ENOSYS".into());
    let unknown = || Found::Unknown("needs root".into());
    assert!(table(vec![row("a", yes(), true, ""), row("b", no(), false, "")]).verdict().is_ok());
    let verdict = |rows| table(rows).verdict().unwrap_err().to_string();
    let missing = verdict(vec![row("a", no(), true, ""), row("b", no(), true, "")]);
    assert_eq!(missing, "needed, and not there: a, b");
    let both = verdict(vec![row("a", no(), true, ""), row("b", unknown(), true, "")]);
    assert_eq!(both, "needed, and not there: a; not known without root: b");
    let unknown = verdict(vec![row("a", unknown(), true, ""), row("b", unknown(), false, "")]);
    assert_eq!(unknown, "needed, and not known without root: a");
}

#[test]
fn a_profile_that_allows_all_confines_nobody() {
    for profile in ["", "unconfined", "containerd (unconfined)"] {
        assert!(!host::confines(profile), "{profile:?}");
    }
    for profile in ["a (enforce)", "a (complain)", "a//&unconfined (mixed)", "a"] {
        assert!(host::confines(profile), "{profile:?}");
    }
}

#[test]
fn who_may_not_ask_does_not_know() {
    let (root, user) = (Asker { admin: true }, Asker { admin: false });
    assert_eq!(root.found(Err(Errno::EPERM)), Found::No("EPERM".into()));
    assert_eq!(user.found(Err(Errno::EPERM)), Found::Unknown("needs root".into()));
    assert_eq!(user.found(Err(Errno::ENOSYS)), Found::No("ENOSYS".into()));
    assert_eq!(user.found(Ok(())), yes());
}
