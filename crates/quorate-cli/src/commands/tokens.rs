//! `token`: a secret for a caller, and what stands for it in the nodes' access file.

use std::path::Path;

use clap::ValueEnum;
use serde_json::json;

use crate::args::{RoleArg, TokenArgs, TokenCommand};
use crate::authority::{now, rfc3339};
use crate::failure::Failure;
use crate::files::{self, Mode};
use crate::output::{self, Format};
use crate::token;

pub(crate) fn run(command: &TokenCommand) -> Result<(), Failure> {
    let TokenCommand::New(args) = command;
    check(args)?;
    let token = token::new().map_err(Failure::failed)?;
    let digest = token::digest_of(&token);
    let stanza = stanza(args, &digest);
    if let Some(path) = &args.out {
        write(path, &token).map_err(Failure::failed)?;
    }
    let shown = args.out.is_none().then_some(&token);
    match args.output {
        Format::Json => output::json(&json!({
            "id": args.id,
            "token": shown,
            "digest": digest,
            "access": stanza,
        }))?,
        Format::Table => {
            if let Some(token) = shown {
                output::line(&format!("{token}\n"))?;
                output::note(
                    "the token is shown this once; below is its entry for the access file",
                );
            }
            output::line(stanza.trim_end())?;
        }
    }
    Ok(())
}

/// Refuses what the nodes would refuse in their access file.
fn check(args: &TokenArgs) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-', '@', '/', ':'].contains(&c);
    if args.id.is_empty() || args.id.len() > 128 || !args.id.chars().all(plain) {
        let id = &args.id;
        return Err(Failure::usage(format!(
            "--id \"{id}\": 1 to 128 letters, digits, '.', '_', '-', '@', '/' or ':'"
        )));
    }
    if args.role == RoleArg::Admin && (args.namespace.is_some() || args.prefix.is_some()) {
        return Err(Failure::usage(
            "--role admin: it may do everything everywhere, so --namespace and --prefix cannot be given",
        ));
    }
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let is_name = |name: &str, ends: bool| {
        name.len() <= 253
            && name.chars().all(|c| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c))
            && is_end(name.chars().next())
            && (!ends || is_end(name.chars().last()))
    };
    if let Some(namespace) = args.namespace.as_deref().filter(|name| *name != "*")
        && !is_name(namespace, true)
    {
        return Err(Failure::usage(format!(
            "--namespace \"{namespace}\": no namespace has that name"
        )));
    }
    if let Some(prefix) = args.prefix.as_deref().filter(|prefix| !prefix.is_empty())
        && !is_name(prefix, false)
    {
        return Err(Failure::usage(format!("--prefix \"{prefix}\": no service's name begins so")));
    }
    Ok(())
}

/// The entry of the access file. Nothing in it has to be escaped. The role comes last: without it,
/// an entry that was written in part is none, and gives no right that its other lines would limit.
fn stanza(args: &TokenArgs, digest: &str) -> String {
    let role = args.role.to_possible_value().expect("invariant: no role is hidden");
    let mut text = format!("[[token]]\nid = \"{}\"\ndigest = \"{digest}\"\n", args.id);
    let not_after = args.valid_for.map(|lifetime| rfc3339(now() + lifetime));
    let not_after = args.not_after.clone().or(not_after);
    let lines =
        [("namespace", &args.namespace), ("prefix", &args.prefix), ("not_after", &not_after)];
    for (key, value) in lines {
        if let Some(value) = value {
            text.push_str(&format!("{key} = \"{value}\"\n"));
        }
    }
    text.push_str(&format!("role = \"{}\"\n", role.get_name()));
    text
}

/// Never over another: that one would be lost.
fn write(path: &Path, token: &str) -> Result<(), String> {
    let is_there = || format!("{} is there already; name another file", path.display());
    if path.symlink_metadata().is_ok() {
        return Err(is_there());
    }
    files::write(path, format!("{token}\n").as_bytes(), Mode::Secret, false)
}
