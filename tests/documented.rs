//! The README says what is so: its list of reasons is the core's.

use vp::node::Reason;

#[test]
fn the_readme_has_every_reason_in_the_words_of_the_code() {
    let readme = include_str!("../README.md");
    for reason in Reason::ALL {
        let meaning = reason.meaning().trim().trim_end_matches('.');
        let row = format!("| `{reason}` | {meaning} |").to_lowercase();
        assert!(readme.to_lowercase().contains(&row), "no row {row}");
    }
    let section = readme.split("## Why something did not pass").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = section.expect("the section").lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, Reason::ALL.len());
}
