//! The API described (OpenAPI 3.1): each route is added together with what it says of itself, so none is without.
//! That the answers are as described is checked by schemathesis, against a running demo.

use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

/// Routes and their descriptions.
pub(super) struct Routes {
    router: Router,
    probes: Router,
    paths: Map<String, Value>,
}

impl Routes {
    pub(super) fn new() -> Routes {
        Routes { router: Router::new(), probes: Router::new(), paths: Map::new() }
    }

    /// A route, and its operations by method.
    pub(super) fn route(mut self, path: &str, handler: MethodRouter, operations: Value) -> Routes {
        self.paths.insert(path.into(), operations);
        self.router = self.router.route(path, handler);
        self
    }

    /// A route that is asked every few seconds.
    pub(super) fn probe(mut self, path: &str, handler: MethodRouter, operations: Value) -> Routes {
        self.paths.insert(path.into(), operations);
        self.probes = self.probes.route(path, handler);
        self
    }

    /// The routes with the document at `/api/openapi.json`, and the probes.
    pub(super) fn finish(mut self) -> (Router, Router) {
        let path = "/api/openapi.json";
        self.paths.insert(
            path.into(),
            json!({"get": operation("This document", &[], json!({
                "200": json_answer("The document", json!({"type": "object"}))
            }))}),
        );
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Tally",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "Continuous queries, read as they are now. Errors are problem JSON (RFC 9457)."
            },
            "paths": self.paths,
            "components": {
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
                "schemas": {"Problem": problem_schema()}
            }
        });
        let router = self.router.route(path, get(move || async move { Json(document) }));
        (router, self.probes)
    }
}

/// An operation that anybody may ask for; with the token the operator may see more.
pub(super) fn operation(summary: &str, parameters: &[Value], answers: Value) -> Value {
    let mut answers = answers;
    // Of any request: a wrong token, another's name, too many at once.
    for (status, why) in [
        ("401", "The token is missing or wrong"),
        ("421", "The server has another name"),
        ("429", "Too many at once"),
        ("500", "It failed; the log says why"),
    ] {
        answers[status] = problem(why);
    }
    json!({
        "summary": summary,
        "parameters": parameters,
        "responses": answers,
        "security": [{}, {"token": []}]
    })
}

/// A parameter of the URL's query.
pub(super) fn parameter(name: &str, description: &str, schema: Value) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}

/// The name in a path.
pub(super) fn view_name() -> Value {
    json!({
        "name": "name", "in": "path", "required": true, "schema": {"type": "string"},
        "description": "A view's name; with .json, .csv, .arrow or .parquet after it, its rows in that format"
    })
}

/// An answer that is a problem.
pub(super) fn problem(description: &str) -> Value {
    json!({
        "description": description,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    })
}

/// An answer in JSON.
pub(super) fn json_answer(description: &str, schema: Value) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

/// An answer in plain text.
pub(super) fn text_answer(description: &str, media_type: &str) -> Value {
    json!({"description": description, "content": {(media_type): {"schema": {"type": "string"}}}})
}

/// Rows, in each of the formats. `head`: what stands before them in JSON.
pub(super) fn rows_answer(head: Value) -> Value {
    let mut properties = head;
    properties["columns"] = columns();
    properties["rows"] = json!({"type": "array", "items": {"type": "object"}});
    let required: Vec<String> =
        properties.as_object().map(|properties| properties.keys().cloned().collect()).unwrap_or_default();
    json!({
        "description": "The rows",
        "content": {
            "application/json": {"schema": {"type": "object", "required": required, "properties": properties}},
            "text/csv": {"schema": {"type": "string"}},
            "application/vnd.apache.arrow.stream": {"schema": {"type": "string", "format": "binary"}},
            "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}}
        }
    })
}

/// Columns with their types in SQL.
pub(super) fn columns() -> Value {
    json!({"type": "array", "items": {
        "type": "object", "required": ["name", "type"],
        "properties": {"name": {"type": "string"}, "type": {"type": "string"}}
    }})
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What is wrong, and what to do"},
            "line": {"type": "integer", "description": "Of an error in SQL"},
            "column": {"type": "integer", "description": "Of an error in SQL"}
        }
    })
}
