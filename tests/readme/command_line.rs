//! docs/command-line.md is what the binary says of itself: the help of each command, one after the
//! other. With QUORATE_WRITE_DOCS=1, the test writes the file.

use std::collections::BTreeMap;
use std::process::Command;

use crate::root;
use crate::skipped::skipped;
use crate::text_of;

const PAGE: &str = "docs/command-line.md";
/// What so many commands have stands at the top, once.
const COMMON: usize = 10;

const HEAD: &str = "# Command line

What `quorate COMMAND -h` says; `--help` says it at more length, and `quorate man DIR` writes man pages. A test compares this page with the
binary.

";
const CALLING: &str = "## Options of commands that call a cluster

";
const ALSO: &str = "
And the [options of commands that call a cluster](#options-of-commands-that-call-a-cluster).
";

/// What a command says of itself.
struct Help {
    /// `cluster status`; empty: of all.
    command: String,
    text: String,
}

impl Help {
    /// The options, each with all of its lines.
    fn options(&self) -> Vec<String> {
        let lines = self.text.lines().skip_while(|line| *line != "Options:").skip(1);
        let mut options: Vec<String> = Vec::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            match options.last_mut() {
                Some(last) if !line.trim_start().starts_with('-') => {
                    last.push_str(line);
                    last.push('\n');
                }
                _ => options.push(format!("{line}\n")),
            }
        }
        options
    }

    /// The names of the commands below it.
    fn below(&self) -> Vec<String> {
        let lines = self.text.lines().skip_while(|line| *line != "Commands:").skip(1);
        let lines = lines.take_while(|line| !line.is_empty());
        // What goes on from the line before is indented further.
        let names = lines.filter(|line| !line.starts_with("   "));
        let names = names.filter_map(|line| line.split_whitespace().next());
        let with = |name: &str| format!("{} {name}", self.command).trim().to_owned();
        names.filter(|name| *name != "help").map(with).collect()
    }
}

/// The help of a command, and of all below it.
fn help(command: &str) -> Vec<Help> {
    let mut binary = Command::new(env!("CARGO_BIN_EXE_quorate"));
    // The help shows what variables say.
    binary.env_clear().args(command.split_whitespace()).arg("-h");
    let output = binary.output().unwrap();
    assert!(output.status.success(), "quorate {command} -h: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| format!("{}\n", line.trim_end()));
    let help = Help { command: command.to_owned(), text: lines.collect() };
    let below: Vec<_> = help.below().iter().flat_map(|command| self::help(command)).collect();
    std::iter::once(help).chain(below).collect()
}

/// An option as it is told apart: columns are as wide as a command's widest option.
fn words(option: &str) -> String {
    option.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The page.
fn page() -> String {
    let all = help("");
    let mut counts = BTreeMap::<String, usize>::new();
    for option in all.iter().flat_map(Help::options) {
        *counts.entry(words(&option)).or_default() += 1;
    }
    let is_help = |option: &str| option.trim_start().starts_with("-h, --help");
    let is_common = |option: &String| counts[&words(option)] >= COMMON;
    let calling = all.iter().find(|help| help.command == "cluster status").expect("it is there");
    let common = calling.options().into_iter().filter(is_common);
    let common: String = common.filter(|option| !is_help(option)).collect();
    let mut page = format!("{HEAD}```text\n{}```\n\n{CALLING}```text\n{common}```\n", all[0].text);
    for help in &all[1..] {
        let mut text = help.text.clone();
        let shared: Vec<String> = help.options().into_iter().filter(is_common).collect();
        // Others have some of them, too: `-o` is of all that print something.
        let calls = shared.iter().any(|option| words(option).starts_with("--nodes "));
        for option in shared.iter().filter(|option| calls || is_help(option)) {
            text = text.replacen(option.as_str(), "", 1);
        }
        let text = text.replace("\nOptions:\n\n", "\n");
        page += &format!("\n## quorate {}\n\n```text\n{}\n```\n", help.command, text.trim_end());
        page += if calls { ALSO } else { "" };
    }
    page
}

#[test]
fn the_documented_command_line_is_the_one_that_there_is() {
    let wanted = page();
    if std::env::var_os("QUORATE_WRITE_DOCS").is_some() {
        std::fs::write(root().join(PAGE), &wanted).unwrap();
    }
    let is_right = text_of(PAGE) == wanted;
    assert!(is_right, "{PAGE} is not what the binary says; QUORATE_WRITE_DOCS=1 writes it");
}

/// `restore` was said to take `--nodes`, as it has `-o` like what calls a cluster.
#[test]
fn only_what_calls_a_cluster_is_said_to() {
    let (page, all) = (page(), help(""));
    let sections: Vec<&str> = page.split("\n## quorate ").skip(1).collect();
    assert_eq!(sections.len(), all.len() - 1);
    for (section, help) in sections.iter().zip(&all[1..]) {
        let calls = help.options().iter().any(|option| words(option).starts_with("--ca "));
        assert_eq!(section.contains(ALSO.trim()), calls, "{}", help.command);
        let prints = help.options().iter().any(|option| words(option).starts_with("-o, "));
        assert!(calls || section.contains("-o, ") == prints, "{}", help.command);
    }
}

/// How each shell reads a script without running it.
const SHELLS: [(&str, &[&str]); 3] =
    [("bash", &["-n"]), ("zsh", &["-n"]), ("fish", &["--no-execute"])];

#[test]
fn shells_take_the_completions() {
    let directory = tempfile::tempdir().unwrap();
    for (shell, args) in SHELLS {
        let mut binary = Command::new(env!("CARGO_BIN_EXE_quorate"));
        let output = binary.args(["completions", shell]).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{shell}: {output:?}");
        let script = directory.path().join(shell);
        std::fs::write(&script, &output.stdout).unwrap();
        match Command::new(shell).args(args).arg(&script).output() {
            Err(error) => skipped(format!("completions for {shell}"), error),
            Ok(read) => assert!(read.status.success() && read.stderr.is_empty(), "{read:?}"),
        }
    }
    // What bash does when Tab is pressed.
    let press = ". ./bash; COMP_WORDS=(quorate cluster rep); COMP_CWORD=2\n\
                 _quorate quorate rep cluster; echo \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    let pressed = bash.args(["-c", press]).current_dir(directory.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&pressed.stdout), "replace\n", "{pressed:?}");
}

#[test]
fn each_command_has_its_man_page() {
    let directory = tempfile::tempdir().unwrap();
    let mut binary = Command::new(env!("CARGO_BIN_EXE_quorate"));
    let output = binary.arg("man").arg(directory.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let pages = std::fs::read_dir(directory.path()).unwrap();
    let mut pages: Vec<_> =
        pages.map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    let commands = help("").into_iter().map(|help| format!("quorate {}", help.command));
    let mut wanted: Vec<_> =
        commands.map(|command| format!("{}.1", command.trim().replace(' ', "-"))).collect();
    wanted.sort();
    assert_eq!(pages, wanted);
    for page in &pages {
        let text = std::fs::read_to_string(directory.path().join(page)).unwrap();
        let name = page.trim_end_matches(".1").replace('-', "\\-");
        assert!(text.contains(&format!(".SH NAME\n{name} \\- ")), "{page}: {text}");
    }
}

/// Lines are as wide as the help is; where the source breaks one in the middle of a sentence, what
/// is left of it is short, and the next line goes on with a small letter. Tables and examples are
/// indented.
fn broken(text: &str) -> Vec<&str> {
    const SHORT: usize = 60;
    let pairs = text.lines().zip(text.lines().skip(1));
    let goes_on = |next: &str| next.starts_with(|first: char| first.is_ascii_lowercase());
    let is_short = |line: &str| !line.is_empty() && !line.starts_with(' ') && line.len() < SHORT;
    pairs.filter(|(line, next)| is_short(line) && goes_on(next)).map(|(line, _)| line).collect()
}

#[test]
fn no_line_of_the_help_is_broken_by_hand() {
    assert_eq!(
        broken("A line of a help that is too wide for\nit and goes on."),
        ["A line of a help that is too wide for"]
    );
    assert_eq!(broken("Commands:\n  quorate a \\\n      b\n\nexit codes"), [""; 0]);
    for help in help("") {
        let broken = broken(&help.text);
        assert!(broken.is_empty(), "quorate {} -h breaks a line after {broken:?}", help.command);
        let examples = help.text.lines().filter(|line| line.starts_with("  quorate "));
        let wide: Vec<_> = examples.filter(|line| line.len() > 90).collect();
        assert!(wide.is_empty(), "quorate {} -h: break with a backslash: {wide:?}", help.command);
    }
}
