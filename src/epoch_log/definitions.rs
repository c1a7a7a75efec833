//! What is counted and how, as hashes: a later start sees by them what was changed in between.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Place, SourceDef, ViewDef};
use crate::hash::{hash, hex};
use crate::reference::Wanted;

/// Declarations, as far as answers depend on them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Definitions {
    /// The engine's version.
    pub engine: String,
    /// By name.
    pub sources: BTreeMap<String, SourceEntry>,
    /// Hash of each materialized view and of what it reads, by name.
    pub views: BTreeMap<String, String>,
    /// Columns that are held of each reference table.
    pub tables: BTreeMap<String, Vec<String>>,
}

/// A source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceEntry {
    /// Its topic's name.
    pub topic: String,
    /// What tells it from another topic of that name, in hexadecimal; empty if the broker has no ids.
    pub topic_id: String,
    /// Hash of its columns, rules and options.
    pub declaration: String,
}

impl Definitions {
    /// Of what `queries/` declares; `wanted` is what is held of the reference tables. Topics' ids are not known here.
    pub fn of(catalog: &Catalog, wanted: &[Wanted]) -> Definitions {
        let source = |def: &SourceDef| SourceEntry {
            topic: def.topic.clone(),
            topic_id: String::new(),
            declaration: short_hash(&declaration(def)),
        };
        let materialized = catalog.views.values().filter(|view| view.materialized);
        Definitions {
            engine: env!("CARGO_PKG_VERSION").into(),
            sources: catalog.sources.iter().map(|(name, def)| (name.clone(), source(def))).collect(),
            views: materialized.map(|view| (view.name.clone(), short_hash(&text(catalog, view)))).collect(),
            tables: wanted.iter().map(|w| (w.def.name.clone(), w.columns.clone())).collect(),
        }
    }

    /// Whether a view means the same in both.
    pub fn has_same_view(&self, other: &Definitions, view: &str) -> bool {
        let (own, others) = (self.views.get(view), other.views.get(view));
        self.engine == other.engine && own.is_some() && own == others
    }
}

fn short_hash(text: &str) -> String {
    hex(&hash(text.as_bytes())[..16])
}

/// All on which it depends what a message counts as. Where letters go and where reading begins is not among it.
fn declaration(def: &SourceDef) -> String {
    let nowhere = Place { file: Default::default(), line: 0, column: 0 };
    let def = SourceDef {
        place: nowhere,
        dead_letter_topic: None,
        start: Default::default(),
        idle_timeout_ms: None,
        ..def.clone()
    };
    format!("{def:?}")
}

/// A view's query and options, and those of all that it may read: whatever is named in a query.
fn text(catalog: &Catalog, view: &ViewDef) -> String {
    let own = |view: &ViewDef| {
        let ViewDef { name, query, topic, key, mode, hold, ring_rows, .. } = view;
        format!("{name}: {query} {topic:?} {key:?} {mode:?} {hold:?} {ring_rows}\n")
    };
    let (mut found, mut todo) = (BTreeSet::new(), vec![view]);
    let mut all = String::new();
    while let Some(view) = todo.pop() {
        if !found.insert(view.name.clone()) {
            continue;
        }
        let query = view.query.to_string();
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let words: BTreeSet<String> = query.split(|c| !is_word(c)).map(str::to_lowercase).collect();
        let is_named = |name: &str| words.contains(&name.to_lowercase()) || !name.chars().all(is_word);
        todo.extend(catalog.views.values().filter(|other| is_named(&other.name)));
        let sources = catalog.sources.values().filter(|source| is_named(&source.name));
        sources.for_each(|source| all.push_str(&declaration(source)));
        all.push_str(&own(view));
    }
    all
}
