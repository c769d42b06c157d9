//! The fenced blocks of a Markdown text, and the words of a shell command. Knows only as much of
//! both as README.md uses; what it does not know, it refuses.

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// What stands after the fence: "sh", "rust".
    pub(crate) language: String,
    /// How many headings stand above it.
    pub(crate) section: usize,
    /// The number of its first line in the file.
    pub(crate) line: usize,
    pub(crate) text: String,
}

pub(crate) fn blocks(markdown: &str) -> Vec<Block> {
    let mut all = Vec::new();
    let mut open: Option<Block> = None;
    let mut section = 0;
    for (at, line) in markdown.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => all.extend(open.take()),
            (Some(language), None) => {
                let (language, text) = (language.trim().to_owned(), String::new());
                open = Some(Block { language, section, line: at + 2, text });
            }
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => section += usize::from(line.starts_with('#')),
        }
    }
    assert_eq!(open, None, "a block that is not closed");
    all
}

/// The commands of a shell block, as words, each with the number of its line in the file.
pub(crate) fn commands(block: &Block) -> Vec<(usize, Vec<String>)> {
    let lines = block.text.lines().enumerate().map(|(at, line)| (block.line + at, words(line)));
    lines.filter(|(_, words)| !words.is_empty()).collect()
}

/// The words of one command: spaces, double quotes, comments; nothing that a shell would expand,
/// except within quotes.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            '#' if !quoted && word.is_none() => break,
            '\\' | '\'' | '`' | '|' | '>' | '<' | ';' | '&' | '*' if !quoted => {
                panic!("{c:?} in {line:?}: tests/readme/blocks.rs does not know this shell syntax")
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    assert!(!quoted, "a quote that is not closed: {line}");
    words.extend(word);
    words
}

#[test]
fn blocks_and_words_are_found() {
    let text = "# A\n```sh\na \"b c\" d=\"e f\"  # g\n\nh\n```\n## B\n```rust\nlet a;\n```\n";
    let found = blocks(text);
    let languages: Vec<_> =
        found.iter().map(|block| (block.language.as_str(), block.section, block.line)).collect();
    assert_eq!(languages, [("sh", 1, 3), ("rust", 2, 9)]);
    let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let expected = vec![(3, words(&["a", "b c", "d=e f"])), (5, words(&["h"]))];
    assert_eq!(commands(&found[0]), expected);
    assert_eq!(found[1].text, "let a;\n");
}
