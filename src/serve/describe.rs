//! What each route of the API says of itself.

use serde_json::{Value, json};

use super::formats::Format;
use super::openapi::{
    columns, json_answer, operation, parameter, problem, rows_answer, text_answer, view_name,
};

fn formats() -> Value {
    json!({"type": "string", "enum": Format::ALL.map(Format::name)})
}

/// `/api/views`
pub(super) fn views() -> Value {
    let view = json!({
        "type": "object",
        "required": ["name", "columns", "key", "mode", "access", "rows", "epoch"],
        "properties": {
            "name": {"type": "string"},
            "columns": columns(),
            "key": {"type": "array", "items": {"type": "string"}, "description": "Columns that tell its rows apart"},
            "mode": {"enum": ["update", "complete", "append"]},
            "access": {"enum": ["public", "operator"], "description": "Who reads it"},
            "sql": {"type": "string", "description": "Its declaration"},
            "topic": {"type": ["string", "null"]},
            "rows": {"type": "integer", "minimum": 0},
            "epoch": {"type": "integer", "minimum": 0, "description": "The one that last changed it"},
            "changed_at": {"type": ["string", "null"], "format": "date-time"},
            "failed": {"type": "object", "description": "Since when and why it shows its last good rows"}
        }
    });
    let list = json!({
        "type": "object",
        "required": ["release", "epoch", "views"],
        "properties": {
            "release": release(),
            "epoch": {"type": "integer", "minimum": 0},
            "views": {"type": "array", "items": view}
        }
    });
    json!({"get": operation("The views", &[], json!({"200": json_answer("Every view that the caller may read", list)}))})
}

fn release() -> Value {
    json!({"type": "integer", "minimum": 0, "description": "The newest; 0: none yet"})
}

/// `/api/changes`
pub(super) fn changes() -> Value {
    let which =
        parameter("views", "Names with commas between them; without it, all", json!({"type": "string"}));
    json!({"get": pushed("Follows views", &[which])})
}

/// `/api/views/{name}/changes`
pub(super) fn changes_of_one() -> Value {
    json!({"get": pushed("Follows a view", &[view_name()])})
}

fn pushed(summary: &str, parameters: &[Value]) -> Value {
    let mut get = operation(
        summary,
        parameters,
        json!({
            "200": text_answer("Events: a snapshot, then the changes of each release (operator: of each epoch)", "text/event-stream"),
            "400": problem("A parameter is wrong"),
            "404": problem("There is no such view"),
            "422": problem("The view has too many rows to be pushed"),
            "503": problem("Not now")
        }),
    );
    get["description"] = "Server-sent events. `Last-Event-ID` resumes.".into();
    get
}

/// `/api/views/{name}`
pub(super) fn view() -> Value {
    let number = |most: Option<u64>| match most {
        Some(most) => json!({"type": "integer", "minimum": 0, "maximum": most}),
        None => json!({"type": "integer", "minimum": 0}),
    };
    let parameters = [
        view_name(),
        parameter("sort", "A column to sort by, or column:desc", json!({"type": "string"})),
        parameter("order", "Of `sort`", json!({"enum": ["asc", "desc"]})),
        parameter("limit", "Most rows", number(Some(100_000))),
        parameter("offset", "Rows that are left out first", number(None)),
        parameter("format", "Instead of the `Accept` header", formats()),
    ];
    let head = json!({
        "view": {"type": "string"},
        "release": release(),
        "epoch": {"type": "integer", "minimum": 0},
        "total_rows": {"type": "integer", "minimum": 0}
    });
    let mut get = operation(
        "A view's rows",
        &parameters,
        json!({
            "200": rows_answer(head),
            "304": {"description": "They are as `If-None-Match` says"},
            "400": problem("A parameter is wrong"),
            "404": problem("There is no such view"),
            "503": problem("Not now")
        }),
    );
    get["description"] =
        "Any other parameter is a column that must have this value; if it is there several times, \
                          one of them. Nothing after the = is NULL."
            .into();
    json!({"get": get})
}

/// `/api/views/{name}/plan`
pub(super) fn plan() -> Value {
    json!({"get": operation("How a view is kept up to date", &[view_name()], json!({
        "200": text_answer("As `tally check` prints it", "text/plain"),
        "404": problem("There is no such view"),
        "503": problem("Not now")
    }))})
}

/// `/api/views/{name}/history`
pub(super) fn history() -> Value {
    let release = json!({
        "type": "object",
        "required": ["release", "at", "rows"],
        "properties": {
            "release": release(),
            "at": {"type": "string", "format": "date-time"},
            "rows": {"type": "array", "items": {"type": "object"}}
        }
    });
    let lines = json!({
        "type": "object",
        "required": ["view", "columns", "releases"],
        "properties": {
            "view": {"type": "string"},
            "columns": columns(),
            "releases": {"type": "array", "items": release}
        }
    });
    json!({"get": operation("A view with `history` in the releases in which it changed", &[view_name()], json!({
        "200": json_answer("The kept releases since the start, the oldest first", lines),
        "404": problem("There is no such view, or it keeps no history"),
        "503": problem("Not now")
    }))})
}

/// `/api/sql`
pub(super) fn sql() -> Value {
    let query =
        json!({"type": "string", "description": "SELECT, WITH, VALUES, EXPLAIN, SHOW TABLES, DESCRIBE"});
    let head = json!({
        "epoch": {"type": "integer", "minimum": 0},
        "truncated": {"type": "boolean", "description": "Whether there are more rows"}
    });
    let answers = json!({
        "200": rows_answer(head),
        "400": problem("The query or a parameter is wrong; line and column say where"),
        "408": problem("The body did not come in time"),
        "413": problem("The query is too long"),
        "415": problem("The body is no JSON"),
        "422": problem("The body is no query, or the query needs too much memory"),
        "503": problem("A table can't be read now"),
        "504": problem("The query took too long")
    });
    let by_url = [
        json!({"name": "query", "in": "query", "required": true, "schema": query}),
        parameter("format", "Instead of the `Accept` header", formats()),
    ];
    let mut get = operation("Asks a query", &by_url, answers.clone());
    let mut post = operation("Asks a query", &by_url[1..], answers);
    for operation in [&mut get, &mut post] {
        operation["description"] = "The operator's, unless the setting `public_sql` opens it.".into();
    }
    post["requestBody"] = json!({
        "required": true,
        "content": {"application/json": {"schema": {
            "type": "object", "required": ["query"], "additionalProperties": false,
            "properties": {"query": query, "format": {"anyOf": [formats(), {"type": "null"}]}}
        }}}
    });
    json!({"get": get, "post": post})
}

/// `/api/status`
pub(super) fn status() -> Value {
    let list = |item: Value| json!({"type": "array", "items": item});
    let count = json!({"type": "integer", "minimum": 0});
    let source = json!({
        "type": "object",
        "required": ["name", "topic", "received", "counted", "rejected", "lag", "partitions"],
        "properties": {
            "name": {"type": "string"}, "topic": {"type": "string"},
            "received": count, "counted": count, "rejected": count, "lag": count
        }
    });
    let status = json!({
        "type": "object",
        "required": ["epoch", "release", "ready", "started_at", "paused", "failed_views", "sources", "batches", "reference_tables"],
        "properties": {
            "epoch": count,
            "release": {
                "type": "object",
                "required": ["release", "epoch", "at", "rows", "unreleased_rows", "complete"],
                "description": "The newest release: what the public sees"
            },
            "ready": {"type": "boolean", "description": "Whether the topics' history is counted"},
            "started_at": {"type": "string", "format": "date-time"},
            "uptime_s": count,
            "paused": list(json!({"type": "object", "required": ["what", "paused_since", "reason"]})),
            "failed_views": list(json!({"type": "object", "required": ["view", "since", "reason"]})),
            "sources": list(source),
            "batches": {"type": "object", "required": ["count", "last_ms", "mean_ms", "max_ms", "stages"]},
            "reference_tables": list(json!({"type": "object", "required": ["name", "rows", "age_s"]}))
        }
    });
    let after = parameter("after", "Waits for an epoch greater than this, at most 30 s", count);
    json!({"get": operation("How the engine is doing", &[after], json!({
        "200": json_answer("Of the operator's, also examples of rejected messages", status),
        "400": problem("A parameter is wrong")
    }))})
}

/// `/metrics`
pub(super) fn metrics() -> Value {
    json!({"get": operation("The status for Prometheus", &[], json!({
        "200": text_answer("OpenMetrics text", "application/openmetrics-text")
    }))})
}

/// `/healthz`
pub(super) fn healthz() -> Value {
    json!({"get": operation("Whether the process answers", &[], json!({"200": text_answer("ok", "text/plain")}))})
}

/// `/readyz`
pub(super) fn readyz() -> Value {
    json!({"get": operation("Whether the views are neither a partial nor an old result", &[], json!({
        "200": text_answer("ready", "text/plain"),
        "503": problem("What it waits for")
    }))})
}
