//! The origins of pages.

use http::uri::Authority;

/// Whether a browser names an origin so: small letters, and nothing behind the port, which is left
/// out where it is the scheme's own. Not `*`, and not `null`, which any page can be.
pub(super) fn is_origin(text: &str) -> bool {
    let schemes = [("https://", ":443"), ("http://", ":80")];
    let of = |(scheme, port): (&str, &'static str)| Some((text.strip_prefix(scheme)?, port));
    let Some((host, own_port)) = schemes.into_iter().find_map(of) else { return false };
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:[]".contains(c);
    let parsed = host.parse::<Authority>();
    let is_whole = parsed.is_ok_and(|parsed| !parsed.host().is_empty());
    is_whole && host.chars().all(known) && !host.ends_with(own_port) && !host.ends_with(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_says() {
        for good in [
            "https://tools.example",
            "http://localhost:3000",
            "http://10.0.0.1",
            "http://[::1]:8080",
            "https://a-b.example:8443",
        ] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "*",
            "null",
            "",
            "https://",
            "tools.example",
            "https://*.example",
            "https://tools.example/",
            "https://tools.example/app",
            "https://Tools.example",
            "HTTPS://tools.example",
            "https://tools.example:443",
            "http://tools.example:80",
            "https://tools.example:",
            "https://me@tools.example",
            "https://tools.example?x",
            "ftp://tools.example",
            "https://:8443",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
