//! `doctor`: asks the nodes what they know of themselves, looks at the files of this client, and
//! says what is wrong, what that means and what to do. What is found depends on the facts alone.

mod checks;
mod facts;
mod findings;

use serde_json::{Value, json};

use crate::args::DoctorArgs;
use crate::commands::cluster::verdict::AS_FAR;
use crate::connect::{Stay, client};
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::patience::{told, trying};

use self::facts::{Facts, gather};
use self::findings::{Diagnosis, RIGHTS, Severity, diagnose};

pub(crate) async fn run(args: DoctorArgs) -> Result<(), Failure> {
    let client_args = args.client;
    let client = client(&client_args, Stay::Once).await?;
    let facts = told(trying("doctor", &client_args), gather(&client, &client_args)).await?;
    let diagnosis = diagnose(&facts);
    output::as_far_as_read(match client_args.output {
        Format::Json => output::json(&as_json(&diagnosis)),
        Format::Table => lines(&diagnosis).iter().try_for_each(|line| output::line(line)),
    })?;
    match diagnosis.worst().map_or(0, Severity::code) {
        0 => Ok(()),
        code => Err(Failure::of_program(code)),
    }
}

/// What is found with these facts, for programs.
pub(super) fn of(facts: &Facts) -> Value {
    as_json(&diagnose(facts))
}

pub(super) use self::facts::gather as facts_of;

fn lines(diagnosis: &Diagnosis) -> Vec<String> {
    let Diagnosis { findings, left_out } = diagnosis;
    let count = |severity| {
        let count = findings.iter().filter(|finding| finding.severity == severity).count();
        (count > 0).then(|| format!("{count} {}", severity.word()))
    };
    let counts =
        [Severity::Critical, Severity::Warning, Severity::Note].into_iter().filter_map(count);
    let counts = counts.collect::<Vec<_>>().join(", ");
    let looked = checks::CHECKS.len() - left_out.len();
    let looked = match left_out.is_empty() {
        true => format!("{looked} checks"),
        false => format!("{looked} of {} checks", checks::CHECKS.len()),
    };
    let mut lines = vec![match counts.as_str() {
        "" if left_out.iter().any(|left| left.why == RIGHTS) => {
            format!("{AS_FAR}: {looked} found nothing")
        }
        "" => format!("OK: {looked} found nothing"),
        counts => format!("{looked}: {counts}"),
    }];
    for finding in findings {
        lines.push(String::new());
        let severity = finding.severity.word().to_uppercase();
        lines.push(format!("{severity} ({}): {}", finding.check, finding.meaning));
        lines.push(format!("  next: {}", finding.next));
    }
    if !left_out.is_empty() {
        lines.push(String::new());
    }
    lines.extend(
        left_out.iter().map(|left| format!("not looked at ({}): {}", left.check, left.why)),
    );
    lines
}

fn as_json(diagnosis: &Diagnosis) -> Value {
    let Diagnosis { findings, left_out } = diagnosis;
    let findings = findings.iter().map(|finding| {
        json!({
            "check": finding.check,
            "severity": finding.severity.word(),
            "node": finding.node,
            "meaning": finding.meaning,
            "next": finding.next,
        })
    });
    let left_out = left_out.iter().map(|left| json!({ "check": left.check, "why": left.why }));
    json!({
        "worst": diagnosis.worst().map_or("ok", Severity::word),
        "findings": findings.collect::<Vec<_>>(),
        "checks": checks::CHECKS.iter().map(|check| check.name).collect::<Vec<_>>(),
        "not_looked_at": left_out.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
