//! Which names the server answers to. A web page can make its own name lead to this machine (DNS rebinding) and
//! then read what only this machine may: so a name that is not ours gets no answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::problem::Problem;

/// The names that are ours.
#[derive(Clone, Debug)]
pub struct Hosts {
    names: Arc<[String]>,
    checked: bool,
}

impl Hosts {
    /// The configured `names`. Without any, a server that others can reach answers to every name.
    pub fn new(names: &[String], address: SocketAddr) -> Hosts {
        let names: Arc<[String]> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        Hosts { checked: address.ip().is_loopback() || !names.is_empty(), names }
    }

    /// An address is nobody else's name, nor is localhost.
    fn has(&self, host: &str) -> bool {
        let name = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        !self.checked
            || bare.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.names.contains(&name)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Refuses requests to other names.
pub async fn check(State(hosts): State<Hosts>, request: Request, next: Next) -> Result<Response, Problem> {
    let header = request.headers().get(HOST).map(HeaderValue::to_str);
    let named = match (request.uri().host(), header) {
        (Some(host), _) => host.to_owned(),
        (None, Some(Ok(host))) => host.to_owned(),
        (None, Some(Err(_))) => "(not text)".to_owned(),
        // Only HTTP/1.0 asks so, and no browser speaks it.
        (None, None) => return Ok(next.run(request).await),
    };
    if hosts.has(&named) {
        return Ok(next.run(request).await);
    }
    let detail = format!(
        "this server is not called {named:?}; the setting `hosts` lists the names it answers to beside localhost"
    );
    Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_names_are_answered() {
        let loopback: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let hosts = Hosts::new(&["Election.example".into()], loopback);
        for ours in [
            "localhost",
            "LOCALHOST:8080",
            "tally.localhost:1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "10.1.2.3",
            "election.example",
            "election.example.:443",
        ] {
            assert!(hosts.has(ours), "{ours}");
        }
        for other in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "evil:8080"]
        {
            assert!(!hosts.has(other), "{other}");
        }
        let open: SocketAddr = "0.0.0.0:8080".parse().unwrap();
        assert!(
            Hosts::new(&[], open).has("election.example"),
            "whoever is open to all is not told its names"
        );
        assert!(!Hosts::new(&["election.example".into()], open).has("evil.example"));
    }
}
