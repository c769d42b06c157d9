//! The token that goes with every call, and where it must not go. It is shown nowhere: no log, no
//! error and no `Debug` has it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::nodes::files::{Before, Kept, Source};

/// Nodes take no larger one.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Where the token comes from.
#[derive(Debug, Clone)]
pub(crate) struct TokenSource(Source);

impl TokenSource {
    pub(crate) fn given(token: String) -> Self {
        Self(Source::given(token))
    }

    pub(crate) fn file(path: PathBuf) -> Self {
        Self(Source::file(path))
    }

    /// # Errors
    /// What is wrong, in words that do not have the token.
    pub(crate) fn load(self) -> Result<Token, String> {
        let named = self.0.clone();
        let make = move |parts: &[&[Vec<u8>]], _: Option<Before<'_, MetadataValue<Ascii>>>| {
            header(&parts[0][0]).map_err(|fault| format!("{named}: {fault}"))
        };
        Kept::new("the token", vec![vec![self.0]], make).map(Token)
    }
}

/// `Bearer TOKEN`, of the bytes of a file or what was given.
fn header(content: &[u8]) -> Result<MetadataValue<Ascii>, &'static str> {
    let token = content.trim_ascii();
    if token.is_empty() {
        return Err("there is no token in it");
    }
    if token.len() > TOKEN_BYTES_MAX {
        return Err("a token has no more than 8192 bytes");
    }
    // RFC 6750, section 2.1. Quotes around it are a mistake that is easily made.
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte);
    if !token.iter().all(allowed) {
        return Err("a token is one word of letters, digits, '-', '.', '_', '~', '+', '/' and '='");
    }
    let token = str::from_utf8(token).expect("invariant: it is ASCII");
    let mut header: MetadataValue<Ascii> =
        format!("Bearer {token}").parse().map_err(|_| "it cannot stand in a header")?;
    header.set_sensitive(true);
    Ok(header)
}

/// The token as it is now.
#[derive(Debug)]
pub(crate) struct Token(Kept<MetadataValue<Ascii>>);

impl Token {
    /// Another number after each change.
    pub(crate) fn changes(&self) -> u64 {
        self.0.changes()
    }

    pub(super) fn is_of_file(&self) -> bool {
        self.0.is_of_files()
    }

    pub(super) async fn reread(&self) {
        self.0.reread().await;
    }

    pub(crate) async fn keep(&self) {
        self.0.keep().await;
    }
}

/// Puts the token of the moment on each call.
#[derive(Clone)]
pub(crate) struct Authorize(pub(super) Option<Arc<Token>>);

impl Interceptor for Authorize {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(Token(header)) = self.0.as_deref() {
            request.metadata_mut().insert("authorization", (*header.now()).clone());
        }
        Ok(request)
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authorize").field(&self.0.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_token_is_refused_and_never_repeated() {
        let load = |text: &str| TokenSource::given(text.to_owned()).load();
        for (text, words) in [
            (" \n", "no token in it"),
            ("hunter2 and more", "one word"),
            ("\"hunter2\"", "one word"),
            ("hunter2\nhunter2", "one word"),
            ("hunter2\u{e9}", "one word"),
            (&"hunter2".repeat(1_200), "8192"),
        ] {
            let fault = load(text).unwrap_err();
            assert!(fault.contains(words) && !fault.contains("hunter2"), "{fault}");
        }
        let token = Arc::new(load("hunter2\n").unwrap());
        let mut authorize = Authorize(Some(token.clone()));
        let request = authorize.call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer hunter2");
        let shown = format!("{token:?} {authorize:?} {request:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
