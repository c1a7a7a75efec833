//! Portraits drawn here, as SVG: the same id always has the same face, of the gender that it begins with. Shapes and
//! presentation attributes only, so that any content policy shows them.

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
            (headers, draw(id)).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A face for `id`: a woman's if it begins with `female-`, a man's with `male-`, else anyone's.
fn draw(id: &str) -> String {
    let mut seed = [0u8; 32];
    for (i, byte) in id.bytes().enumerate() {
        seed[i % 32] = seed[i % 32].wrapping_mul(31).wrapping_add(byte);
    }
    let mut rng = StdRng::from_seed(seed);
    let mut pick = |colours: &[&'static str]| *colours.choose(&mut rng).unwrap_or(&"#888888");
    let (wall, skin, hair, cloth) = (pick(&WALLS), pick(&SKINS), pick(&HAIRS), pick(&CLOTHES));
    let woman = if id.starts_with("female-") {
        true
    } else if id.starts_with("male-") {
        false
    } else {
        rng.random_bool(0.5)
    };
    let mut one_of = |women: &[&str], men: &[&str]| {
        let shapes = if woman { women } else { men };
        shapes.choose(&mut rng).unwrap_or(&"").replace("HAIR", hair)
    };
    let (back, fringe) = (one_of(&LONG, &SHORT), one_of(&PARTED, &CROPPED));
    let (beard, collar) = (one_of(&[""], &["", "", "", BEARD, STUBBLE]), one_of(&NECKLINES, &COLLARS));
    let glasses = if rng.random_bool(0.3) { GLASSES } else { "" };
    let smile = rng.random_range(5..12);
    let brows = if woman { 3 } else { 5 };
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256" role="img"><rect width="256" height="256" fill="{wall}"/>{back}<path d="M30 256q4-76 98-76t98 76z" fill="{cloth}"/><path d="M106 150h44v38q-22 20-44 0z" fill="{skin}"/><path d="M106 160h44v10q-22 18-44 4z" fill="#000000" fill-opacity="0.12"/>{collar}<ellipse cx="82" cy="122" rx="8" ry="12" fill="{skin}"/><ellipse cx="174" cy="122" rx="8" ry="12" fill="{skin}"/><path d="M82 108q0-46 46-46t46 46v14q0 50-46 50t-46-50z" fill="{skin}"/>{beard}{fringe}<path d="M98 101q10-7 20-1M138 100q10-6 20 1" fill="none" stroke="{hair}" stroke-width="{brows}" stroke-linecap="round"/><circle cx="109" cy="117" r="5" fill="#2a2320"/><circle cx="147" cy="117" r="5" fill="#2a2320"/><path d="M128 118q-6 14 2 17" fill="none" stroke="#000000" stroke-opacity="0.25" stroke-width="3" stroke-linecap="round"/><path d="M112 148q16 {smile} 32 0" fill="none" stroke="#7c2f2b" stroke-width="4" stroke-linecap="round"/>{glasses}</svg>"##
    )
}

/// Behind a woman's head, and behind a man's.
const LONG: [&str; 4] = [
    r#"<path d="M70 118q-4-74 58-74t58 74q2 48 10 70-28 14-68 14t-68-14q8-22 10-70z" fill="HAIR"/>"#,
    r#"<path d="M72 112q-2-66 56-66t56 66v40q-20 18-56 18t-56-18z" fill="HAIR"/>"#,
    r#"<circle cx="128" cy="42" r="22" fill="HAIR"/><ellipse cx="128" cy="100" rx="54" ry="54" fill="HAIR"/>"#,
    r#"<path d="M74 104q0-58 54-58t54 58v30q20 8 14 34-16 8-28-6l-8-24H96l-8 24q-12 14-28 6-6-26 14-34z" fill="HAIR"/>"#,
];
const SHORT: [&str; 3] = [
    r#"<path d="M76 116q-4-64 52-64t52 64z" fill="HAIR"/>"#,
    r#"<path d="M78 118q-2-60 50-60t50 60z" fill="HAIR"/>"#,
    r#"<path d="M79 120v-18h98v18z" fill="HAIR"/>"#,
];
/// In front of it.
const PARTED: [&str; 4] = [
    r#"<path d="M80 112q-2-58 52-58 42 2 44 58-18-10-34-34-20 28-62 34z" fill="HAIR"/>"#,
    r#"<path d="M80 110q4-54 48-54t48 54q-10-28-48-30-38 2-48 30z" fill="HAIR"/>"#,
    r#"<path d="M80 108q2-52 48-52t48 52q-4-12-10-16-38 8-76 0-6 4-10 16z" fill="HAIR"/>"#,
    r#"<path d="M80 116q-2-62 48-62t48 62q-4-24-20-38-34 6-56-4-16 16-20 42z" fill="HAIR"/>"#,
];
const CROPPED: [&str; 4] = [
    r#"<path d="M80 106q0-50 48-50t48 50q-8-20-18-26-26 6-60 0-10 6-18 26z" fill="HAIR"/>"#,
    r#"<path d="M80 104q2-50 52-50 44 2 44 50-6-16-16-22-36 0-52-8-20 8-28 30z" fill="HAIR"/>"#,
    r#"<path d="M82 98q6-40 46-40t46 40q-10-16-46-18-36 2-46 18z" fill="HAIR"/>"#,
    r#"<path d="M79 118q-2-20 4-32 4 10 4 20zM177 118q2-20-4-32-4 10-4 20z" fill="HAIR"/>"#,
];
const BEARD: &str = r#"<path d="M82 120q0 56 46 56t46-56q-6 20-20 20-26-8-52 0-14 0-20-20z" fill="HAIR"/>"#;
const STUBBLE: &str = r#"<path d="M82 122q0 54 46 54t46-54q-6 18-20 18-26-8-52 0-14 0-20-18z" fill="HAIR" fill-opacity="0.35"/>"#;
const NECKLINES: [&str; 2] = [
    r##"<path d="M100 184q28 30 56 0" fill="none" stroke="#ffffff" stroke-opacity="0.75" stroke-width="5"/>"##,
    "",
];
const COLLARS: [&str; 2] = [
    r##"<path d="M102 180l26 34 26-34 12 6-22 40-16-14-16 14-22-40z" fill="#ffffff"/><path d="M122 212h12l5 44h-22z" fill="#33415c"/>"##,
    r##"<path d="M102 180l26 30 26-30 10 6-20 34-16-12-16 12-20-34z" fill="#ffffff"/>"##,
];
const GLASSES: &str = r##"<g fill="none" stroke="#2a2320" stroke-width="3"><circle cx="109" cy="117" r="15"/><circle cx="147" cy="117" r="15"/><path d="M124 115h8"/></g>"##;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_id_has_the_same_face_and_another_id_another() {
        assert_eq!(draw("a"), draw("a"));
        assert_ne!(draw("a"), draw("b"));
        let svg = draw("c");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>") && !svg.contains("style="));
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
    }

    #[test]
    fn no_woman_has_a_beard_and_no_man_long_hair() {
        let shapes = |shapes: &[&str], svg: &str| {
            let marks = shapes.iter().filter_map(|shape| shape.split(" fill=").next());
            marks.filter(|mark| svg.contains(mark)).count()
        };
        for i in 0..200 {
            let (woman, man) = (draw(&format!("female-{i}")), draw(&format!("male-{i}")));
            assert_eq!(shapes(&[BEARD, STUBBLE], &woman), 0);
            assert_eq!(shapes(&LONG, &man), 0);
        }
    }
}
