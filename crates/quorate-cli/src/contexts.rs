//! Named clusters: `~/.config/quorate/config.toml` says where their nodes are, and which
//! credentials this client has there. Flags win over variables, and both over the context; but one
//! that a flag names wins over variables, which were set for another command, and no CA and no
//! credential of a variable is used with it. Holds no secrets, only where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;
use serde::Deserialize;

use crate::args::ClientArgs;
use crate::failure::Failure;
use crate::parse;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The context where none is named.
    default: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// One cluster.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    nodes: Option<Nodes>,
    namespace: Option<String>,
    ca: Option<PathBuf>,
    crl: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

/// As `--nodes` has them, or one by one.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Nodes {
    Text(String),
    List(Vec<String>),
}

/// The arguments whose values are those of variables, by their names.
#[derive(Debug, Default)]
struct OfVariables(BTreeSet<String>);

impl OfVariables {
    /// Of the command that was made.
    fn read(matches: &ArgMatches) -> Self {
        let mut command = matches;
        while let Some((_, inner)) = command.subcommand() {
            command = inner;
        }
        let is_of_variable = |id: &str| command.value_source(id) == Some(ValueSource::EnvVariable);
        let ids = command.ids().map(clap::Id::as_str);
        Self(ids.filter(|id| is_of_variable(id)).map(str::to_owned).collect())
    }

    fn has(&self, id: &str) -> bool {
        self.0.contains(id)
    }
}

/// Fills up what neither flags nor variables say, and sees that the whole makes sense. `before`:
/// the context that stands before the command.
pub(crate) fn settle(
    args: &mut ClientArgs,
    before: Option<String>,
    matches: &ArgMatches,
) -> Result<(), Failure> {
    let mut of_variables = OfVariables::read(matches);
    if before.is_some() && (args.context.is_none() || of_variables.has("context")) {
        args.context = before;
        of_variables.0.remove("context");
    }
    settle_from(
        args,
        &of_variables,
        |name| std::env::var_os(name),
        |path| match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        },
    )
    .map_err(Failure::usage)
}

fn settle_from(
    args: &mut ClientArgs,
    of_variables: &OfVariables,
    variable: impl Fn(&str) -> Option<OsString>,
    read: impl Fn(&Path) -> Result<Option<String>, String>,
) -> Result<(), String> {
    let ClientArgs { ca, crl, cert, key, token_file, .. } = args;
    for path in [ca, crl, cert, key, token_file] {
        path.take_if(|path| path.as_os_str().is_empty());
    }
    args.namespace.take_if(|namespace| namespace.is_empty());
    // An empty name asks for none.
    if args.context.as_deref() != Some("")
        && let Some(path) = path(&variable)
    {
        let named = |fault: String| format!("{}: {fault}", path.display());
        let file = read(&path).map_err(named)?;
        let context = chosen(file.as_deref(), args.context.as_deref()).map_err(named)?;
        if let Some((name, context)) = context {
            let key = |fault| named(format!("contexts.{name}.{fault}"));
            let dir = path.parent().unwrap_or(Path::new(""));
            if args.context.is_some() && !of_variables.has("context") {
                make_way(args, &context, of_variables);
            }
            let token = variable("QUORATE_TOKEN").filter(|token| !token.is_empty());
            let has_token = token.is_some() && !args.ignores_token;
            fill(args, context, dir, has_token).map_err(key)?;
        }
    }
    match (&args.ca, &args.cert, &args.key) {
        (_, Some(_), None) => {
            Err("a certificate without its key: --key, or QUORATE_KEY, or key in the context"
                .to_owned())
        }
        (_, None, Some(_)) => {
            Err("a key without its certificate: --cert, or QUORATE_CERT, or cert in the context"
                .to_owned())
        }
        (None, Some(_), _) => {
            Err("a certificate, and no CA to trust: --ca, or QUORATE_CA, or ca in the context"
                .to_owned())
        }
        (None, ..) if args.crl.is_some() => {
            Err("a revocation list, and no CA to trust: --ca, or QUORATE_CA, or ca in the context"
                .to_owned())
        }
        _ => Ok(()),
    }
}

/// Where the file is, if there can be one.
pub(crate) fn file() -> Option<PathBuf> {
    path(|name| std::env::var_os(name))
}

/// Where the file is, if there is one.
fn path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").filter(|config| config.is_absolute());
    let config = config.or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(config.join("quorate/config.toml"))
}

/// The context with this name, or the default one.
fn chosen(file: Option<&str>, name: Option<&str>) -> Result<Option<(String, Context)>, String> {
    let Some(text) = file else {
        return match name {
            Some(name) => Err(format!("no such file, so there is no context \"{name}\"")),
            None => Ok(None),
        };
    };
    let mut file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let (name, as_default) = match (name, file.default) {
        (Some(name), _) => (name.to_owned(), ""),
        (None, Some(default)) => (default, "default: "),
        (None, None) => return Ok(None),
    };
    if let Some(context) = file.contexts.remove(&name) {
        return Ok(Some((name, context)));
    }
    let all = file.contexts.into_keys().collect::<Vec<_>>().join(", ");
    let all = if all.is_empty() { "none".to_owned() } else { all };
    Err(format!("{as_default}there is no context \"{name}\"; there are: {all}"))
}

/// Forgets what variables say of the cluster where the context says it, and all that they say of
/// whom to trust there and as whom a command is made: what was exported for one cluster is not to
/// be sent to another that was named, also where its context has no credentials.
fn make_way(args: &mut ClientArgs, context: &Context, of_variables: &OfVariables) {
    let has = |id| of_variables.has(id);
    args.nodes.take_if(|_| context.nodes.is_some() && has("nodes"));
    args.namespace.take_if(|_| context.namespace.is_some() && has("namespace"));
    args.ignores_token = true;
    args.token_file.take_if(|_| has("token_file"));
    args.ca.take_if(|_| has("ca"));
    args.crl.take_if(|_| has("crl"));
    // They belong together: the one of a variable goes with the other of a flag.
    let is_flag = |file: &Option<PathBuf>, id| file.is_some() && !has(id);
    if !is_flag(&args.cert, "cert") && !is_flag(&args.key, "key") {
        (args.cert, args.key) = (None, None);
    }
}

/// # Errors
/// The key, and what is wrong with it.
fn fill(
    args: &mut ClientArgs,
    context: Context,
    dir: &Path,
    has_token: bool,
) -> Result<(), String> {
    let nodes = match context.nodes {
        Some(Nodes::Text(text)) => Some(text),
        Some(Nodes::List(list)) => Some(list.join(",")),
        None => None,
    };
    let nodes = nodes.map(|text| parse::nodes(&text)).transpose();
    let nodes = nodes.map_err(|fault| format!("nodes: {fault}"))?;
    // Nodes that were named may be another cluster's, which is not to be shown what this one takes.
    let is_named = args.context.is_some();
    let is_elsewhere = !is_named
        && args.nodes.iter().flatten().any(|node| !nodes.iter().flatten().any(|own| own == node));
    args.nodes = args.nodes.take().or(nodes);
    args.namespace = args.namespace.take().or(context.namespace);
    // Relative to where they are written; an absolute path stays.
    let beside = |path: Option<PathBuf>| path.map(|path| dir.join(path));
    // The lists of a CA that is none here would be refused.
    if args.ca.is_none() {
        args.ca = beside(context.ca);
        args.crl = args.crl.take().or(beside(context.crl));
    }
    if is_elsewhere {
        return Ok(());
    }
    // They belong together.
    if args.cert.is_none() && args.key.is_none() {
        (args.cert, args.key) = (beside(context.cert), beside(context.key));
    }
    if !has_token {
        args.token_file = args.token_file.take().or(beside(context.token_file));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    const FILE: &str = r#"
        default = "prod"

        [contexts.prod]
        nodes = ["10.0.0.1:7001", "10.0.0.2:7001"]
        namespace = "shop"
        ca = "prod/ca.crt"
        crl = "prod/ca.crl"
        cert = "/etc/me.crt"
        key = "/etc/me.key"
        token_file = "prod/token"

        [contexts.dev]
        nodes = "127.0.0.1:7001,7002"
    "#;

    fn settled(
        line: &str,
        file: Option<&str>,
        variables: &[(&str, &str)],
    ) -> Result<ClientArgs, String> {
        settled_with(line, &[], file, variables)
    }

    /// `of_variables`: arguments that stand in the line for what variables say.
    fn settled_with(
        line: &str,
        of_variables: &[&str],
        file: Option<&str>,
        variables: &[(&str, &str)],
    ) -> Result<ClientArgs, String> {
        let of_variables = OfVariables(of_variables.iter().map(|id| (*id).to_owned()).collect());
        let line = format!("quorate fetch s {line}");
        let words = line.split_whitespace().map(|word| if word == "''" { "" } else { word });
        let Command::Fetch(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("is a fetch")
        };
        let mut args = args.client;
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        let variable = |name: &str| match variables.get(name) {
            Some(value) => Some((*value).into()),
            None => (name == "HOME").then(|| "/home/me".into()),
        };
        let read = |path: &Path| {
            let home = path == Path::new("/home/me/.config/quorate/config.toml");
            let other = path == Path::new("/xdg/quorate/config.toml");
            assert!(home || other, "{}", path.display());
            Ok(file.map(str::to_owned))
        };
        settle_from(&mut args, &of_variables, variable, read).map(|()| args)
    }

    /// What was exported for another cluster would make the command there.
    #[test]
    fn a_context_that_a_flag_names_wins_over_variables() {
        let path = |text: &str| Some(PathBuf::from(text));
        let all = ["nodes", "namespace", "ca", "crl", "cert", "key", "token_file"];
        let told = "--nodes a:1 --ca c --crl l --cert d --key e --token-file f --namespace n";
        let token = [("QUORATE_TOKEN", "t")];
        let with = |context: &str, of_variables: &[&str]| {
            settled_with(&format!("{told} {context}"), of_variables, Some(FILE), &token).unwrap()
        };
        let prod = with("--context prod", &all);
        assert_eq!((prod.nodes().len(), prod.namespace()), (2, "shop"));
        assert_eq!(prod.ca, path("/home/me/.config/quorate/prod/ca.crt"));
        assert_eq!(prod.crl, path("/home/me/.config/quorate/prod/ca.crl"));
        assert_eq!((prod.cert, prod.key), (path("/etc/me.crt"), path("/etc/me.key")));
        assert_eq!(prod.token_file, path("/home/me/.config/quorate/prod/token"));
        assert!(prod.ignores_token);

        // Flags win over it, one by one.
        let mine = with("--context prod", &["namespace", "key"]);
        assert_eq!((mine.nodes(), mine.namespace()), (vec!["a:1".to_owned()], "shop"));
        assert_eq!((mine.ca, mine.crl, mine.token_file), (path("c"), path("l"), path("f")));
        assert_eq!((mine.cert, mine.key), (path("d"), path("e")), "they belong together");

        // One that a variable names, too, or the file's default, is below all of them.
        let of_variable = [&all[..], &["context"]].concat();
        for (context, of_variables) in [("--context prod", &of_variable[..]), ("", &all)] {
            let mine = with(context, of_variables);
            assert_eq!((mine.nodes(), mine.namespace()), (vec!["a:1".to_owned()], "n"));
            assert_eq!((mine.cert, mine.token_file), (path("d"), path("f")));
            assert!(!mine.ignores_token);
        }

        // What it does not say of the cluster, variables say; not whom to trust, and as whom.
        let dev = with("--context dev", &all);
        assert_eq!((dev.nodes().len(), dev.namespace()), (2, "n"));
        assert_eq!((dev.ca, dev.crl, dev.cert, dev.key), (None, None, None, None));
        assert_eq!(dev.token_file, None);
        assert!(dev.ignores_token);
        let mine = with("--context dev", &["nodes", "namespace"]);
        assert_eq!((mine.ca, mine.cert, mine.token_file), (path("c"), path("d"), path("f")));
        // None is no context.
        let none = with("--context ''", &all);
        assert!(none.cert == path("d") && none.token_file == path("f") && !none.ignores_token);
    }

    #[test]
    fn flags_win_over_the_context_key_by_key() {
        let path = |text: &str| Some(PathBuf::from(text));
        let prod = settled("", Some(FILE), &[]).unwrap();
        assert_eq!(prod.nodes(), ["10.0.0.1:7001", "10.0.0.2:7001"]);
        assert_eq!(prod.namespace(), "shop");
        assert_eq!(prod.ca, path("/home/me/.config/quorate/prod/ca.crt"));
        assert_eq!(prod.crl, path("/home/me/.config/quorate/prod/ca.crl"));
        assert_eq!((&prod.cert, &prod.key), (&path("/etc/me.crt"), &path("/etc/me.key")));
        assert_eq!(prod.token_file, path("/home/me/.config/quorate/prod/token"));

        let flags = "--nodes a:1 --ca c --cert d --key e --token-file f --namespace n";
        let mine = settled(flags, Some(FILE), &[]).unwrap();
        assert_eq!((mine.nodes(), mine.namespace()), (vec!["a:1".to_owned()], "n"));
        assert_eq!((mine.ca, mine.cert, mine.key), (path("c"), path("d"), path("e")));
        assert_eq!(mine.token_file, path("f"));
        assert_eq!(mine.crl, None, "the context's are of another CA");
        let list = settled("--crl l", Some(FILE), &[]).unwrap();
        assert_eq!(list.crl, path("l"));
        assert_eq!(list.ca, path("/home/me/.config/quorate/prod/ca.crt"));

        let xdg = [("XDG_CONFIG_HOME", "/xdg"), ("QUORATE_TOKEN", "t")];
        let with_token = settled("--ca ''", Some(FILE), &xdg).unwrap();
        assert_eq!(with_token.token_file, None, "the variable wins");
        assert_eq!(with_token.ca, path("/xdg/quorate/prod/ca.crt"), "empty is not set");

        let xdg = [("XDG_CONFIG_HOME", "/xdg"), ("QUORATE_TOKEN", "")];
        let without = settled("", Some(FILE), &xdg).unwrap();
        assert_eq!(without.token_file, path("/xdg/quorate/prod/token"), "empty is not set");

        let dev = settled("--context dev", Some(FILE), &[]).unwrap();
        assert_eq!((dev.nodes().len(), dev.namespace()), (2, "default"));
        for (line, file) in [("--context ''", Some(FILE)), ("", None), ("", Some(""))] {
            let none = settled(line, file, &[]).unwrap();
            assert_eq!(none.nodes()[2], "127.0.0.1:7003", "{line}");
            assert_eq!((none.ca, none.token_file), (None, None));
        }
    }

    /// Its nodes would be sent the token.
    #[test]
    fn credentials_of_the_default_context_are_not_for_the_nodes_of_another_cluster() {
        let of = |line: &str, of_variables: &[&str]| {
            let args = settled_with(line, of_variables, Some(FILE), &[]).unwrap();
            (args.cert.is_some(), args.key.is_some(), args.token_file.is_some())
        };
        for of_variables in [&[][..], &["nodes"]] {
            let none = of("--nodes 10.9.9.9:7001", of_variables);
            assert_eq!(none, (false, false, false), "{of_variables:?}");
            let some = of("--nodes 10.0.0.1:7001,10.9.9.9:7001", of_variables);
            assert_eq!(some, (false, false, false), "{of_variables:?}");
            let own = of("--nodes 10.0.0.2:7001", of_variables);
            assert_eq!(own, (true, true, true), "its own: {of_variables:?}");
        }
        let named = of("--nodes 10.9.9.9:7001 --context prod", &[]);
        assert_eq!(named, (true, true, true), "who names both means it");
        let given = settled("--nodes 10.9.9.9:7001 --token-file f", Some(FILE), &[]).unwrap();
        assert_eq!(given.token_file, Some(PathBuf::from("f")));
    }

    #[test]
    fn what_cannot_be_is_named_with_its_file_and_key() {
        for (line, file, words) in [
            ("--context x", Some(FILE), "there is no context \"x\"; there are: dev, prod"),
            ("--context x", None, "no such file, so there is no context \"x\""),
            ("", Some("default = \"x\""), "default: there is no context \"x\"; there are: none"),
            ("--context a", Some("[contexts.a]\nnode = \"a:1\""), "unknown field `node`"),
            ("--context a", Some("[contexts.a]\nnodes = \"here\""), "contexts.a.nodes: \"here\""),
            ("--context a", Some("[contexts.a]\nnodes = 3"), "nodes"),
            ("--context a", Some("contexts = ["), "config.toml: "),
        ] {
            let refused = settled(line, file, &[]).unwrap_err();
            let named = refused.starts_with("/home/me/.config/quorate/config.toml: ");
            assert!(named && refused.contains(words), "not \"{words}\": {refused}");
        }
        for (line, words) in [
            ("--cert a --key b", "no CA to trust: --ca"),
            ("--crl l", "a revocation list, and no CA to trust: --ca"),
            ("--ca c --cert a", "without its key: --key"),
            ("--ca c --key b", "without its certificate: --cert"),
        ] {
            let refused = settled(line, None, &[]).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
