//! What `quorate --version` says. Used by build.rs alone, and tested here.

/// The version, and the commit with its day: as it is given, else as git says it where it is asked.
pub(crate) fn text(
    version: &str,
    given: Option<String>,
    git: Option<fn() -> Option<String>>,
) -> String {
    match given.or_else(|| git?()) {
        Some(commit) => format!("{version} ({commit})"),
        None => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_names_the_commit_and_its_day_where_they_are_known() {
        let git = || Some("3f9c1d2e0 2026-11-28".to_owned());
        assert_eq!(text("0.2.0", None, Some(git)), "0.2.0 (3f9c1d2e0 2026-11-28)");
        let given = Some("1a2b3c4d5 2026-11-29".to_owned());
        assert_eq!(text("0.2.0", given, Some(git)), "0.2.0 (1a2b3c4d5 2026-11-29)");
        assert_eq!(text("0.2.0", None, Some(|| None)), "0.2.0", "there is no git");
        assert_eq!(text("0.2.0", None, None), "0.2.0", "a build for tests");
    }

    /// What this very binary says begins with the version of its package.
    #[test]
    fn a_build_says_what_was_made_of_it() {
        let rest = env!("QUORATE_VERSION").strip_prefix(env!("CARGO_PKG_VERSION")).unwrap();
        let words: Vec<_> = rest.trim_matches([' ', '(', ')']).split(' ').collect();
        assert!(rest.is_empty() || rest.starts_with(" (") && words.len() == 2, "{rest:?}");
    }
}
