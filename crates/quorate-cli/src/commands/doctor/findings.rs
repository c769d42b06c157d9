//! What a diagnosis is, and how one is made of the facts: each check by itself.

use super::checks::CHECKS;
use super::facts::Facts;

/// Why a check is left out whose caller may not see the whole cluster.
pub(super) use crate::commands::cluster::verdict::RIGHTS;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// Good to know.
    Note,
    /// Works, and will not for ever.
    Warning,
    /// Does not work, or is about to lose data.
    Critical,
}

impl Severity {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// The exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Note => 0,
            Self::Warning => 1,
            Self::Critical => 2,
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The check that found it.
    pub(crate) check: &'static str,
    pub(in crate::commands) severity: Severity,
    /// `None`: it is of the cluster, or of this client.
    pub(crate) node: Option<u64>,
    pub(in crate::commands) meaning: String,
    /// What to do; the command, where there is one.
    pub(crate) next: String,
}

/// A check that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) check: &'static str,
    pub(crate) why: String,
}

/// One thing to look at.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// Whether it takes what nodes tell only to those who may see the whole cluster.
    pub(in crate::commands) needs_rights: bool,
    /// # Errors
    /// Why it cannot be made.
    pub(crate) find: fn(&Facts, &mut Found) -> Result<(), String>,
}

/// Where a check puts what it finds.
#[derive(Debug)]
pub(crate) struct Found {
    check: &'static str,
    findings: Vec<Finding>,
}

impl Found {
    /// Of a node.
    pub(crate) fn of(
        &mut self,
        node: u64,
        severity: Severity,
        meaning: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(Some(node), severity, meaning.into(), next.into());
    }

    /// Of the cluster, or of this client.
    pub(in crate::commands) fn of_all(
        &mut self,
        severity: Severity,
        meaning: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(None, severity, meaning.into(), next.into());
    }

    fn add(&mut self, node: Option<u64>, severity: Severity, meaning: String, next: String) {
        let check = self.check;
        self.findings.push(Finding { check, severity, node, meaning, next });
    }
}

/// What is wrong, the worst first, and what could not be looked at.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    pub(in crate::commands) findings: Vec<Finding>,
    pub(in crate::commands) left_out: Vec<LeftOut>,
}

impl Diagnosis {
    pub(in crate::commands) fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

pub(in crate::commands) fn diagnose(facts: &Facts) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    for check in &CHECKS {
        let mut found = Found { check: check.name, findings: Vec::new() };
        let made = match facts.view.status.partial && check.needs_rights {
            true => Err(RIGHTS.to_owned()),
            false => (check.find)(facts, &mut found),
        };
        if let Err(why) = made {
            diagnosis.left_out.push(LeftOut { check: check.name, why });
        }
        diagnosis.findings.extend(found.findings);
    }
    diagnosis.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    diagnosis
}
