//! What may be told of a text that can hold a secret: in messages to clients, in the log, at `/status`.

/// A URL, or a reference relative to one, without its credentials and its query: hosted servers have their keys there,
/// and servers the ids of their sessions. Some have the keys in the path: of an HTTP server elsewhere it is not shown.
pub fn url(url: &str) -> String {
    let shown = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = match shown.split_once("//") {
        Some((scheme, rest)) if scheme.is_empty() || scheme.ends_with(':') => (format!("{scheme}//"), rest),
        _ => (String::new(), shown),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let hides = matches!(&*scheme, "http://" | "https://") && path.len() > 1 && !is_loopback(host);
    let path = if hides { "/…" } else { path };
    format!("{scheme}{host}{path}")
}

fn is_loopback(host: &str) -> bool {
    ["127.", "localhost", "[::1]"].iter().any(|start| host.starts_with(start))
}

#[cfg(test)]
mod tests {
    #[test]
    fn of_a_url_scheme_host_port_and_path_are_shown() {
        for (whole, shown) in [
            ("https://example.com/s/SECRET/mcp?key=SECRET", "https://example.com/…"),
            ("https://example.com/?key=SECRET", "https://example.com/"),
            ("http://127.0.0.1:3001", "http://127.0.0.1:3001"),
            ("http://localhost/mcp?key=SECRET", "http://localhost/mcp"),
            ("https://me:SECRET@[::1]:3001/@owner/name/mcp?a=b@c", "https://[::1]:3001/@owner/name/mcp"),
            ("wss://broker/mqtt#SECRET", "wss://broker/mqtt"),
            ("https://me:SE@CRET@host", "https://host"),
            ("/message?sessionId=SECRET", "/message"),
            ("//me:SECRET@host/m", "//host/m"),
            // Its scheme forgotten, it is a URL as well.
            ("me:SECRET@host", "host"),
            ("me:SECRET@host/a//b", "host/a//b"),
            ("message", "message"),
            ("", ""),
        ] {
            assert_eq!(super::url(whole), shown, "{whole}");
        }
    }
}
