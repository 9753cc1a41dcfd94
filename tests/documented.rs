//! The README says what is so: its lists of reasons are the core's.

use vp::identity::{JoinRefusal, Refusal};
use vp::node::{FlowEnd, Reason};

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

#[test]
fn the_readme_has_every_way_in_which_a_flow_ends() {
    let section = include_str!("../README.md").split("## The audit log").nth(1).expect("the section");
    let section = section.split("\n## ").next().expect("its text");
    for end in FlowEnd::ALL {
        assert!(section.contains(&format!("`{}`", end.word())), "{end:?}");
    }
}

#[test]
fn the_readme_has_every_reason_for_which_a_certificate_is_refused() {
    let readme = include_str!("../README.md").to_lowercase();
    for refusal in Refusal::ALL {
        let row = format!("| `{}` | {} |", refusal.word(), refusal.meaning()).to_lowercase();
        assert!(readme.contains(&row), "no row {row}");
    }
}

#[test]
fn the_readme_has_every_reason_for_which_a_site_does_not_join() {
    let readme = include_str!("../README.md").to_lowercase();
    for refusal in JoinRefusal::ALL {
        let row = format!("| `{}` | {} |", refusal.word(), refusal.meaning()).to_lowercase();
        assert!(readme.contains(&row), "no row {row}");
    }
}
