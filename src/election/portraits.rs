//! Portraits drawn here, as SVG: the same id always has the same face. Shapes and presentation attributes
//! only, so that any content policy shows them.

use axum::Router;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

const ID_CHARS_MAX: usize = 64;
const SKINS: [&str; 8] =
    ["#f6d7c3", "#f1c8a8", "#e5b08a", "#d29a6e", "#b87d52", "#96603b", "#75482c", "#573421"];
const HAIRS: [&str; 9] =
    ["#1f1a17", "#3a2a20", "#5c3d28", "#8a5a35", "#b98a4e", "#d9b878", "#9a9a9a", "#d6d3ce", "#a3472b"];
const CLOTHES: [&str; 8] =
    ["#2f4b7c", "#7a3b5e", "#3c6e57", "#8c4a2f", "#4a4a6a", "#a33f3f", "#33658a", "#5b5b5b"];
const WALLS: [&str; 8] =
    ["#cfe3f1", "#f3dfc7", "#d8ead3", "#ecd6e6", "#e3e1f4", "#f7e6a9", "#cdeae6", "#f0d3cd"];

/// `GET /portraits/{kind}/{id}.svg`, of a `candidate` or a `voter`.
pub fn router() -> Router {
    Router::new().route("/portraits/{kind}/{file}", get(portrait))
}

async fn portrait(Path((kind, file)): Path<(String, String)>) -> Response {
    let id = file.strip_suffix(".svg").filter(|id| id.len() <= ID_CHARS_MAX);
    match (kind.as_str(), id) {
        ("candidate" | "voter", Some(id)) => {
            let headers =
                [(header::CONTENT_TYPE, "image/svg+xml"), (header::CACHE_CONTROL, "public, max-age=604800")];
            (headers, draw(id, kind == "candidate")).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A face for `id`; candidates wear a rosette.
fn draw(id: &str, rosette: bool) -> String {
    let mut seed = [0u8; 32];
    for (i, byte) in id.bytes().enumerate() {
        seed[i % 32] = seed[i % 32].wrapping_mul(31).wrapping_add(byte);
    }
    let mut rng = StdRng::from_seed(seed);
    let mut pick = |colours: &[&'static str]| *colours.choose(&mut rng).unwrap_or(&"#888888");
    let (wall, skin, hair, cloth, ribbon) =
        (pick(&WALLS), pick(&SKINS), pick(&HAIRS), pick(&CLOTHES), pick(&CLOTHES));
    let back = match rng.random_range(0..4) {
        0 => format!(r#"<path d="M72 120q-6-72 56-72t56 72v62H72z" fill="{hair}"/>"#),
        1 => format!(r#"<ellipse cx="128" cy="104" rx="58" ry="60" fill="{hair}"/>"#),
        2 => format!(
            r#"<circle cx="128" cy="44" r="20" fill="{hair}"/><ellipse cx="128" cy="100" rx="54" ry="54" fill="{hair}"/>"#
        ),
        _ => String::new(),
    };
    let fringe = match rng.random_range(0..4) {
        0 => format!(r#"<path d="M80 106q2-52 48-52t48 52q-14-26-48-26t-48 26z" fill="{hair}"/>"#),
        1 => format!(r#"<path d="M80 108q0-56 52-54 44 2 44 54-22-6-38-30-18 26-58 30z" fill="{hair}"/>"#),
        2 => format!(
            r#"<path d="M80 104q4-50 48-50t48 50q-6-16-16-22-30 10-64 0-12 6-16 22z" fill="{hair}"/>"#
        ),
        _ => format!(r#"<path d="M82 98q8-40 46-40t46 40q-10-18-46-20-36 2-46 20z" fill="{hair}"/>"#),
    };
    let glasses = rng.random_bool(0.3);
    let beard = rng.random_bool(0.2);
    let smile = rng.random_range(4..12);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256" role="img"><rect width="256" height="256" fill="{wall}"/>{back}<path d="M32 256q4-74 96-74t96 74z" fill="{cloth}"/><path d="M106 150h44v36q-22 20-44 0z" fill="{skin}"/><path d="M106 160h44v10q-22 18-44 4z" fill="#000000" fill-opacity="0.1"/><ellipse cx="128" cy="118" rx="46" ry="54" fill="{skin}"/>"##
    );
    if beard {
        svg += &format!(
            r#"<path d="M84 128q4 46 44 46t44-46q-8 14-22 12-22-6-44 0-14 2-22-12z" fill="{hair}"/>"#
        );
    }
    svg += &fringe;
    svg += r##"<circle cx="110" cy="116" r="5" fill="#2a2320"/><circle cx="146" cy="116" r="5" fill="#2a2320"/><path d="M128 118q-6 14 2 16" fill="none" stroke="#000000" stroke-opacity="0.25" stroke-width="3" stroke-linecap="round"/>"##;
    svg += &format!(
        r##"<path d="M112 146q16 {smile} 32 0" fill="none" stroke="#7c2f2b" stroke-width="4" stroke-linecap="round"/>"##
    );
    if glasses {
        svg += r##"<g fill="none" stroke="#2a2320" stroke-width="3"><circle cx="110" cy="116" r="14"/><circle cx="146" cy="116" r="14"/><path d="M124 114h8"/></g>"##;
    }
    if rosette {
        svg += &format!(
            r##"<g fill="{ribbon}"><path d="M176 226l-8 26 12-6 4 10 6-26z"/><circle cx="182" cy="222" r="16" stroke="#ffffff" stroke-width="4"/></g>"##
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::draw;

    #[test]
    fn the_same_id_has_the_same_face_and_another_id_another() {
        assert_eq!(draw("a", true), draw("a", true));
        assert_ne!(draw("a", true), draw("b", true));
        let svg = draw("c", false);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>") && !svg.contains("style="));
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
    }
}
