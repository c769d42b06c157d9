//! What bodies are taken for.

use super::*;

#[test]
fn nothing_is_nothing_however_it_is_written() {
    for nothing in ["", "{}", "{ }", "{}\n", " {\r\n\t}\n"] {
        assert!(is_nothing(nothing.as_bytes()), "{nothing:?}");
    }
    for something in [" ", "[]", "null", "0", "{} {}", "{\"a\":1}", "{", "{}}", "\"\"", "{}\0"] {
        assert!(!is_nothing(something.as_bytes()), "{something:?}");
    }
}
