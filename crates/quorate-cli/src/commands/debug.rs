//! `debug bundle`: one file with what is needed to look into a problem from elsewhere. What cannot
//! be had is missing, and the manifest says why: it is made when things do not work.

mod archive;
mod http;
mod local;
mod redact;

use serde_json::{Value, json};

use crate::args::{BundleArgs, DebugCommand};
use crate::commands::cluster::status::judged;
use crate::commands::doctor;
use crate::connect::{Stay, client};
use crate::failure::Failure;
use crate::files::{self, Mode};
use crate::output::{self, Format};
use crate::patience::{told, trying};

use self::archive::Archive;
use self::redact::redacted;

/// What goes into the archive.
#[derive(Debug, Default)]
struct Parts {
    files: Vec<(String, String)>,
    missing: Vec<(String, String)>,
}

impl Parts {
    /// # Errors
    /// None: why a part cannot be had is one.
    fn add(&mut self, name: &str, part: Result<String, String>) {
        match part {
            Ok(text) => self.files.push((name.to_owned(), redacted(&text))),
            Err(why) => self.missing.push((name.to_owned(), redacted(&why))),
        }
    }
}

pub(crate) async fn run(command: DebugCommand) -> Result<(), Failure> {
    let DebugCommand::Bundle(args) = command;
    if args.file.symlink_metadata().is_ok() {
        let file = args.file.display();
        let next = "name another file, or move that one away";
        return Err(Failure::failed(format!("{file} exists\n  next: {next}")));
    }
    let mut parts = Parts::default();
    of_nodes(&args, &mut parts).await;
    for address in args.http.iter().flatten() {
        let name = format!("metrics/{}.txt", safe(address));
        parts.add(&name, http::metrics(address, &args.client).await);
    }
    if args.http.is_none() {
        let why = "--http was not given: it says where nodes listen for HTTP";
        parts.add("metrics", Err(why.to_owned()));
    }
    local::add(&args, &mut parts);
    write(&args, parts)
}

/// The status and the diagnosis.
async fn of_nodes(args: &BundleArgs, parts: &mut Parts) {
    let asked = async {
        let client = client(&args.client, Stay::Once).await?;
        doctor::facts_of(&client, &args.client).await
    };
    let asked = told(trying("debug bundle", &args.client), asked).await;
    let pretty = |value: Value| format!("{value:#}\n");
    let why = |failure: &Failure| failure.message().to_owned();
    parts.add("status.json", asked.as_ref().map(|facts| pretty(judged(&facts.view))).map_err(why));
    parts.add("doctor.json", asked.as_ref().map(|facts| pretty(doctor::of(facts))).map_err(why));
}

fn write(args: &BundleArgs, parts: Parts) -> Result<(), Failure> {
    let Parts { files, missing } = parts;
    let names: Vec<&String> = files.iter().map(|(name, _)| name).collect();
    let missed: Vec<Value> =
        missing.iter().map(|(name, why)| json!({ "name": name, "why": why })).collect();
    let manifest = json!({
        "made_by": format!("quorate {}", env!("CARGO_PKG_VERSION")),
        "nodes": args.client.nodes(),
        "files": names,
        "missing": missed,
    });
    let mut archive = Archive::default();
    archive.add("manifest.json", format!("{manifest:#}\n").as_bytes());
    for (name, text) in &files {
        archive.add(name, text.as_bytes());
    }
    files::write(&args.file, &archive.finish(), Mode::Secret, false).map_err(Failure::failed)?;
    match args.client.output {
        Format::Json => output::json(&manifest)?,
        Format::Table => {
            let (file, count) = (args.file.display(), files.len());
            output::line(&format!("{file}: {count} files, and manifest.json, which lists them"))?;
            for (name, why) in missing {
                let why = why.lines().next().unwrap_or_default();
                output::line(&format!("  without {name}: {why}"))?;
            }
        }
    }
    Ok(())
}

/// A name that is safe in an archive, and short enough for its heads.
fn safe(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '_' };
    name.chars().map(kept).take(64).collect()
}
