//! What must not be shown of the settings.

use url::Url;

use super::HIDDEN;

/// A Postgres URL with its secrets hidden, in the user's part and in the query; text that is no URL is hidden
/// whole.
pub fn redacted_url(url: &str) -> String {
    // A URL without a host (`postgres:///db?host=…`) is one; only what has no scheme and slashes is not.
    let Ok(mut shown) = Url::parse(url) else { return HIDDEN.into() };
    if !shown.has_authority() {
        return HIDDEN.into();
    }
    if shown.password().is_some() && shown.set_password(Some(HIDDEN)).is_err() {
        return HIDDEN.into();
    }
    if shown.query().is_some() {
        let pairs: Vec<(String, String)> = shown.query_pairs().into_owned().collect();
        let mut query = shown.query_pairs_mut();
        query.clear();
        for (name, value) in &pairs {
            query.append_pair(name, if is_secret(name) { HIDDEN } else { value });
        }
        drop(query);
    }
    shown.set_fragment(None);
    shown.into()
}

/// Whether a setting of this name may hold a secret.
pub fn is_secret(name: &str) -> bool {
    // What a path or a mechanism is called is no secret, and helps where it is wrong.
    let name = name.to_lowercase();
    let harmless =
        name.ends_with(".location") || name.ends_with(".mechanism") || name.ends_with(".mechanisms");
    let secrets = [
        "pass",
        "pwd",
        "key",
        "token",
        "secret",
        "credential",
        "assertion",
        "oauthbearer.config",
        "jaas",
        "pem",
    ];
    !harmless && secrets.iter().any(|secret| name.contains(secret))
}
