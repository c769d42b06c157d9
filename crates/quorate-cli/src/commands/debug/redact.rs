//! Takes secrets out of a text: tokens, what stands behind `Bearer` and `Basic`, JWTs, private
//! keys. Nodes write none of them down; what is collected may come from elsewhere.

const HIDDEN: &str = "(redacted)";

/// What a secret begins with, of which the beginning is told, too.
const BEGINNINGS: [&str; 4] = ["qrt_", "eyJ", "bearer ", "basic "];

/// The text without what looks like a secret.
pub(super) fn redacted(text: &str) -> String {
    let mut lines = Vec::new();
    let mut is_key = false;
    for line in text.split('\n') {
        if line.contains("-----BEGIN ") && line.contains("PRIVATE KEY") {
            lines.push(format!("{HIDDEN} private key"));
            // On one line, where line breaks are escaped.
            is_key = !line.contains("-----END ");
            continue;
        }
        if is_key {
            is_key = !line.contains("-----END ");
            continue;
        }
        lines.push(BEGINNINGS.iter().fold(line.to_owned(), |line, begin| hidden(&line, begin)));
    }
    lines.join("\n")
}

/// The line without the words that begin so.
fn hidden(line: &str, begin: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = find(rest, begin) {
        let (before, from) = rest.split_at(at + begin.len());
        let is_secret = |c: char| c.is_ascii_alphanumeric() || "_-.+/=~".contains(c);
        let end = from.find(|c| !is_secret(c)).unwrap_or(from.len());
        out.push_str(before);
        if end > 0 {
            out.push_str(HIDDEN);
        }
        rest = &from[end..];
    }
    out + rest
}

/// Where a word begins so, whatever its case.
fn find(line: &str, begin: &str) -> Option<usize> {
    let bytes = line.as_bytes();
    let starts = |at: usize| {
        let found = bytes.get(at..at + begin.len());
        let is_word = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        is_word && found.is_some_and(|found| found.eq_ignore_ascii_case(begin.as_bytes()))
    };
    (0..bytes.len()).find(|at| starts(*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_and_the_rest_stays() {
        for (text, expected) in [
            ("a line, as it was", "a line, as it was"),
            ("token=qrt_abc-DEF_9 is bad", "token=qrt_(redacted) is bad"),
            ("qrt_a qrt_b", "qrt_(redacted) qrt_(redacted)"),
            ("authorization: Bearer abc.def", "authorization: Bearer (redacted)"),
            ("Authorization: basic dXNlcjpw=\" x", "Authorization: basic (redacted)\" x"),
            ("jwt eyJhbGci.eyJz.c2ln!", "jwt eyJ(redacted)!"),
            (
                "a\n-----BEGIN PRIVATE KEY-----\nAAA\n-----END PRIVATE KEY-----\nb",
                "a\n(redacted) private key\nb",
            ),
            (
                "x \"-----BEGIN EC PRIVATE KEY-----\\nAAA\\n-----END EC PRIVATE KEY-----\"\nb",
                "(redacted) private key\nb",
            ),
            ("-----BEGIN CERTIFICATE-----\nAAA", "-----BEGIN CERTIFICATE-----\nAAA"),
            ("pure-qrt_x", "pure-qrt_(redacted)"),
            ("\u{e9}qrt_x \u{e9}", "\u{e9}qrt_(redacted) \u{e9}"),
        ] {
            assert_eq!(redacted(text), expected);
        }
    }
}
