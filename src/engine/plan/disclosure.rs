//! Who may read a view: as it declares, else as its query suggests. A query that shows rows of a stream one by one
//! is not for everybody.

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::logical_expr::{Expr, JoinType, LogicalPlan};

use super::keys::identifying;
use crate::catalog::{Access, Catalog, Mode, ViewDef};
use crate::engine::bound::unaliased;
use crate::engine::input::Kind;
use crate::engine::split;
use crate::engine::view::{Disclosure, Secret};
use crate::error::Result;

/// Aggregates that give values of single rows back.
const SHOWS_VALUES: [&str; 8] =
    ["array_agg", "first_value", "last_value", "max", "min", "mode", "nth_value", "string_agg"];

/// What is to be known of a view before it is served. `plan` is optimized.
pub fn disclosure(
    catalog: &Catalog,
    def: &ViewDef,
    schema: &SchemaRef,
    key: &[String],
    mode: Mode,
    plan: &LogicalPlan,
) -> Result<Disclosure> {
    let primary_key = |source: &str| {
        let key = catalog.sources.get(source).and_then(|source| source.primary_key());
        key.map(<[String]>::to_vec).unwrap_or_default()
    };
    let shows_rows = shows_rows(plan, &primary_key)?;
    let by_default = if shows_rows || mode == Mode::Append { Access::Operator } else { Access::Public };
    let access = def.disclosure.access.unwrap_or(by_default);
    let secret = secret(def, schema, key)?;
    if let Some(column) = &def.disclosure.complete_when {
        let field = schema.field_with_name(column).ok();
        if field.is_none_or(|field| field.data_type() != &DataType::Boolean) {
            return Err(def
                .place
                .error(format!("complete_when '{column}' must be a BOOLEAN column of the view")));
        }
    }
    let history = def.disclosure.history;
    if history.is_some() && access == Access::Operator {
        return Err(def.place.error("history is of releases, and the operator's views are in none"));
    }
    let mut warnings = Vec::new();
    if access == Access::Public && shows_rows {
        warnings.push(
            "everybody reads this view, and it shows single rows of a stream: who chose what is no secret in it"
                .to_string(),
        );
    }
    if access == Access::Public && secret.is_none() && key.len() > 1 && split::reads_stream(plan) {
        warnings.push(format!(
            "everybody reads this view, and it counts by ({}) together: where one of them is a choice, small groups \
             tell who chose it. Name the others in secret_by, or set access = 'operator'",
            key.join(", ")
        ));
    }
    let complete_when = def.disclosure.complete_when.clone();
    Ok(Disclosure { access, secret, complete_when, history, warnings })
}

fn secret(def: &ViewDef, schema: &SchemaRef, key: &[String]) -> Result<Option<Secret>> {
    // Sorted, so that views with the same columns in another order are told to be alike.
    let Some(mut by) = def.disclosure.secret_by.clone() else {
        return match def.disclosure.counted_in {
            Some(_) => Err(def.place.error("counted_in belongs to secret_by")),
            None => Ok(None),
        };
    };
    if key.is_empty() {
        return Err(def.place.error("secret_by needs a key that tells the view's rows apart"));
    }
    if let Some(other) = by.iter().find(|column| !key.contains(column)) {
        let reason = format!("secret_by '{other}' is no key column; the key is {}", key.join(", "));
        return Err(def.place.error(reason));
    }
    let mut choice: Vec<String> = key.iter().filter(|column| !by.contains(column)).cloned().collect();
    choice.sort();
    by.sort();
    let is_count = |name: &str| {
        schema.field_with_name(name).is_ok_and(|field| field.data_type().is_integer())
            && !key.iter().any(|column| column == name)
    };
    let counted_in = match &def.disclosure.counted_in {
        Some(column) if is_count(column) => column.clone(),
        Some(column) => {
            return Err(def
                .place
                .error(format!("counted_in '{column}' must be an integer column outside the key")));
        }
        None => {
            let counts: Vec<&str> = schema
                .fields()
                .iter()
                .map(|field| field.name().as_str())
                .filter(|name| is_count(name))
                .collect();
            match counts[..] {
                [column] => column.to_string(),
                _ => {
                    return Err(def.place.error(format!(
                        "secret_by needs counted_in, the integer column that says how many chose a row; there are: {}",
                        counts.join(", ")
                    )));
                }
            }
        }
    };
    Ok(Some(Secret { by, choice, counted_in }))
}

/// Whether a row of the plan can stand for a single row of a stream.
fn shows_rows(plan: &LogicalPlan, primary_key: &dyn Fn(&str) -> Vec<String>) -> Result<bool> {
    Ok(match plan {
        LogicalPlan::TableScan(scan) => split::input_kind(scan) == Some(Kind::Stream),
        LogicalPlan::Aggregate(aggregate) => {
            if !shows_rows(&aggregate.input, primary_key)? {
                return Ok(false);
            }
            let identifies = identifying(&aggregate.input, primary_key)?;
            let shows = |expr: &Expr| {
                let name = match expr {
                    Expr::AggregateFunction(function) => function.func.name().to_lowercase(),
                    _ => return false,
                };
                SHOWS_VALUES.contains(&name.as_str()) && identifies(expr)
            };
            aggregate.group_expr.iter().any(&identifies)
                || aggregate.aggr_expr.iter().any(|expr| shows(unaliased(expr)))
        }
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => {
                shows_rows(&join.left, primary_key)?
            }
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                shows_rows(&join.right, primary_key)?
            }
            _ => shows_rows(&join.left, primary_key)? || shows_rows(&join.right, primary_key)?,
        },
        _ => {
            for input in plan.inputs() {
                if shows_rows(input, primary_key)? {
                    return Ok(true);
                }
            }
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use arrow::datatypes::{Field, Schema};

    use super::*;
    use crate::engine::{Engine, session};
    use crate::queries::QueryFile;

    const SOURCE: &str =
        "CREATE UNBOUNDED EXTERNAL TABLE votes (voter VARCHAR NOT NULL, choice VARCHAR, weight INT,
        PRIMARY KEY (voter)) STORED AS KAFKA LOCATION 'votes' OPTIONS ('format' 'json');";

    async fn disclosed(options: &str, query: &str) -> Result<Disclosure> {
        let text = format!("{SOURCE}\nCREATE MATERIALIZED VIEW v {options} AS {query};");
        let files = [QueryFile { path: PathBuf::from("queries/test.sql"), text }];
        let catalog = Catalog::parse(&files, &session::continuous().state()).await?;
        let columns = ["voter", "name", "county"].map(|name| Field::new(name, DataType::Utf8, true));
        let voters = ("voters".to_string(), Arc::new(Schema::new(columns.to_vec())));
        let engine = Engine::plan(&catalog, &[voters]).await?;
        Ok(engine.views().next().expect("one view").disclosure.clone())
    }

    #[tokio::test]
    async fn what_shows_rows_one_by_one_is_the_operators() {
        let joined = "FROM votes b JOIN voters v ON v.voter = b.voter";
        for (options, query, access) in [
            ("", "SELECT choice, COUNT(*) AS n FROM votes GROUP BY choice".to_string(), Access::Public),
            ("", "SELECT COUNT(DISTINCT voter) AS n FROM votes".into(), Access::Public),
            (
                "",
                format!("SELECT v.county, COUNT(*) AS n, MAX(b.weight) AS most {joined} GROUP BY 1"),
                Access::Public,
            ),
            ("", "SELECT county, COUNT(*) AS n FROM voters GROUP BY county".into(), Access::Public),
            ("", "SELECT voter, choice FROM votes".into(), Access::Operator),
            ("", format!("SELECT v.name, b.choice {joined}"), Access::Operator),
            ("", "SELECT voter, MAX(choice) AS c FROM votes GROUP BY voter".into(), Access::Operator),
            ("", format!("SELECT v.voter, COUNT(*) AS n {joined} GROUP BY v.voter"), Access::Operator),
            ("", "SELECT DISTINCT voter FROM votes".into(), Access::Operator),
            ("", "SELECT choice, MIN(voter) AS first FROM votes GROUP BY choice".into(), Access::Operator),
            (
                "",
                "SELECT choice, array_agg(voter) AS who FROM votes GROUP BY choice".into(),
                Access::Operator,
            ),
            (
                "WITH (hold_rows = '9')",
                "SELECT voter, choice FROM votes ORDER BY voter LIMIT 3".into(),
                Access::Operator,
            ),
            (
                "WITH (access = 'operator')",
                "SELECT choice, COUNT(*) AS n FROM votes GROUP BY choice".into(),
                Access::Operator,
            ),
        ] {
            let found = disclosed(options, &query).await.unwrap();
            assert_eq!((found.access, found.warnings.len()), (access, 0), "{query}: {found:?}");
        }
        let found = disclosed("WITH (access = 'public')", "SELECT voter, choice FROM votes").await.unwrap();
        assert_eq!(found.access, Access::Public);
        assert!(found.warnings[0].contains("single rows"), "{found:?}");
    }

    #[tokio::test]
    async fn what_crosses_choices_with_people_says_so_or_is_warned_of() {
        let query = "SELECT v.county, b.choice, COUNT(*) AS votes, 1 AS one
                     FROM votes b JOIN voters v ON v.voter = b.voter GROUP BY 1, 2";
        let found = disclosed("", query).await.unwrap();
        assert!(found.warnings[0].contains("secret_by"), "{found:?}");
        let options = "WITH (key = 'county, choice', secret_by = 'county', counted_in = 'votes')";
        let found = disclosed(options, query).await.unwrap();
        let secret =
            Secret { by: vec!["county".into()], choice: vec!["choice".into()], counted_in: "votes".into() };
        assert_eq!((found.secret, found.warnings), (Some(secret), Vec::new()));
        for (options, reason) in [
            ("WITH (access = 'friends')", "access 'friends' is not known"),
            ("WITH (secret_by = 'town', counted_in = 'votes')", "secret_by 'town' is no key column"),
            ("WITH (secret_by = 'county')", "secret_by needs counted_in"),
            (
                "WITH (secret_by = 'county', counted_in = 'choice')",
                "must be an integer column outside the key",
            ),
            ("WITH (counted_in = 'votes')", "counted_in belongs to secret_by"),
            ("WITH (complete_when = 'votes')", "must be a BOOLEAN column"),
            ("WITH (history = 'long')", "history 'long' is no number of releases from 1 to 1000"),
            ("WITH (history = '9', access = 'operator')", "the operator's views are in none"),
        ] {
            let error = disclosed(options, query).await.unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("queries/test.sql:3"), "{options}: {error}");
        }
    }
}
