//! Which alerts of ops/alerts.yaml fire, by what the nodes of a cluster measure. promtool goes by
//! the rules themselves, as if all went on for hours as it did between two scrapes: what was
//! counted then is counted on, and all else stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

use crate::built::{installed, root};
use crate::prometheus::OF_THE_MACHINE;
use crate::skipped::skipped;

/// The longest that a rule wants to hold is an hour. Rules are looked at every five minutes: that
/// takes a fifth of the time.
const MINUTES: u32 = 70;

/// What nodes measured at one moment.
pub(super) struct Scrape {
    at: Instant,
    /// By node; `None`: it did not answer.
    texts: Vec<(String, Option<String>)>,
}

impl Scrape {
    pub(super) fn of(texts: Vec<(String, Option<String>)>) -> Self {
        Self { at: Instant::now(), texts }
    }

    /// By name and labels, with those that Prometheus adds.
    fn samples(&self, wanted: &BTreeSet<&str>) -> BTreeMap<String, f64> {
        let mut all = BTreeMap::new();
        for (node, text) in &self.texts {
            let added = format!("job=\"quorate\",instance=\"{node}\"");
            all.insert(format!("up{{{added}}}"), if text.is_some() { 1.0 } else { 0.0 });
            for line in text.iter().flat_map(|text| text.lines()) {
                let Some((series, value)) = line.rsplit_once(' ') else { continue };
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                if wanted.contains(name) {
                    let comma = if labels == "}" { "" } else { "," };
                    let series = format!("{name}{{{added}{comma}{labels}");
                    all.insert(series, value.parse().expect("a sample"));
                }
            }
        }
        all
    }
}

/// # Errors
/// Others fire.
pub(super) async fn are(expected: &[&str], before: &Scrape, now: &Scrape) -> Result<(), String> {
    let promtool = match installed(".ci/install-prometheus", &["promtool"]) {
        Ok(promtool) => promtool,
        Err(reason) => {
            skipped("which alerts fire", reason);
            return Ok(());
        }
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), test(expected, before, now)).unwrap();
    let ran = tokio::task::spawn_blocking(move || {
        Command::new(promtool).args(["test", "rules"]).arg(file.path()).output().unwrap()
    });
    let ran = ran.await.unwrap();
    match ran.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned()),
    }
}

/// Of promtool.
fn test(expected: &[&str], before: &Scrape, now: &Scrape) -> String {
    let path = root().join("ops/alerts.yaml");
    let rules = std::fs::read_to_string(&path).unwrap();
    let words = rules.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    let wanted: BTreeSet<&str> = words.filter(|word| word.contains('_')).collect();
    let minutes = now.at.duration_since(before.at).as_secs_f64() / 60.0;
    let (earlier, samples) = (before.samples(&wanted), now.samples(&wanted));
    let mut text = format!(
        "rule_files: [{:?}]\nevaluation_interval: 5m\ntests:\n- interval: 1m\n  input_series:\n",
        path.display().to_string()
    );
    for (series, value) in samples {
        let name = series.split('{').next().unwrap();
        let is_count = ["_total", "_bucket"].iter().any(|end| name.ends_with(end));
        let more = match earlier.get(&series) {
            Some(before) if is_count => (value - before).max(0.0) / minutes,
            _ => 0.0,
        };
        let _ = writeln!(text, "  - {{series: '{series}', values: '{value}+{more}x{MINUTES}'}}");
    }
    let left_out = OF_THE_MACHINE.join("|");
    let _ = write!(
        text,
        "  promql_expr_test:\n  - expr: group by (alertname) (ALERTS{{alertstate=\"firing\",\
         alertname!~\"{left_out}\"}})\n    eval_time: {MINUTES}m\n    exp_samples:\n"
    );
    for alert in expected {
        let _ = writeln!(text, "    - {{labels: '{{alertname=\"{alert}\"}}', value: 1}}");
    }
    text
}
