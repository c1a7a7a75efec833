//! The rules that a source's rows must keep: NOT NULL, CHECK, FOREIGN KEY, PRIMARY KEY.

use datafusion::sql::parser::CreateExternalTable;
use datafusion::sql::sqlparser::ast::{ColumnOption, Expr, Ident, ObjectName, TableConstraint};

use super::{Place, bare_name, normalize};
use crate::error::Result;

/// A rule for the rows of a source. Its name is what rejected messages are counted by.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The declared constraint's name, or one made of the rule, such as `check(vote = 1)`.
    pub name: String,
    /// What must hold.
    pub kind: RuleKind,
}

/// What a rule demands.
#[derive(Clone, Debug)]
pub enum RuleKind {
    /// The column has a value.
    NotNull(String),
    /// The expression is not false.
    Check(Box<Expr>),
    /// The values of `columns` are those of a row of the reference table.
    ForeignKey {
        /// Columns of the source.
        columns: Vec<String>,
        /// The reference table.
        table: String,
        /// Its columns, in the same order.
        referred: Vec<String>,
    },
    /// No earlier row that kept every rule has the same values.
    PrimaryKey(Vec<String>),
}

pub(super) fn rules(table: &CreateExternalTable, place: &Place) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for column in &table.columns {
        for option in &column.options {
            let name = option.name.as_ref().map(normalize);
            let own = || vec![normalize(&column.name)];
            match &option.option {
                ColumnOption::Null => {}
                ColumnOption::NotNull => rules.push(rule(name, RuleKind::NotNull(normalize(&column.name)))),
                ColumnOption::PrimaryKey(_) => rules.push(rule(name, RuleKind::PrimaryKey(own()))),
                ColumnOption::Check(check) => rules.push(rule(name, RuleKind::Check(check.expr.clone()))),
                ColumnOption::ForeignKey(key) => {
                    rules.push(foreign_key(name, own(), &key.foreign_table, &key.referred_columns, place)?);
                }
                other => {
                    return Err(place.error(format!("column {}: `{other}` is not known here", column.name)));
                }
            }
        }
    }
    for constraint in &table.constraints {
        match constraint {
            TableConstraint::PrimaryKey(key) => {
                let columns = key.columns.iter().map(|c| match &c.column.expr {
                    Expr::Identifier(ident) => Ok(normalize(ident)),
                    other => Err(place.error(format!("PRIMARY KEY ({other}): only columns can be a key"))),
                });
                let kind = RuleKind::PrimaryKey(columns.collect::<Result<_>>()?);
                rules.push(rule(key.name.as_ref().map(normalize), kind));
            }
            TableConstraint::Check(check) => {
                rules.push(rule(check.name.as_ref().map(normalize), RuleKind::Check(check.expr.clone())));
            }
            TableConstraint::ForeignKey(key) => {
                let columns = key.columns.iter().map(normalize).collect();
                let name = key.name.as_ref().map(normalize);
                rules.push(foreign_key(name, columns, &key.foreign_table, &key.referred_columns, place)?);
            }
            other => {
                return Err(place.error(format!(
                    "`{other}`: a source knows NOT NULL, CHECK, FOREIGN KEY and PRIMARY KEY"
                )));
            }
        }
    }
    rules.sort_by_key(|rule| match rule.kind {
        RuleKind::NotNull(_) => 0,
        RuleKind::Check(_) => 1,
        RuleKind::ForeignKey { .. } => 2,
        RuleKind::PrimaryKey(_) => 3,
    });
    if rules.iter().filter(|rule| matches!(rule.kind, RuleKind::PrimaryKey(_))).count() > 1 {
        return Err(place.error("a source has at most one PRIMARY KEY"));
    }
    Ok(rules)
}

fn rule(name: Option<String>, kind: RuleKind) -> Rule {
    let name = name.unwrap_or_else(|| match &kind {
        RuleKind::NotNull(column) => format!("not_null({column})"),
        RuleKind::Check(expr) => format!("check({expr})"),
        RuleKind::ForeignKey { columns, .. } => format!("foreign_key({})", columns.join(", ")),
        RuleKind::PrimaryKey(columns) => format!("primary_key({})", columns.join(", ")),
    });
    Rule { name, kind }
}

fn foreign_key(
    name: Option<String>,
    columns: Vec<String>,
    table: &ObjectName,
    referred: &[Ident],
    place: &Place,
) -> Result<Rule> {
    let referred: Vec<_> = referred.iter().map(normalize).collect();
    if referred.len() != columns.len() {
        return Err(
            place.error(format!("FOREIGN KEY ({}): name as many columns of {table}", columns.join(", ")))
        );
    }
    Ok(rule(name, RuleKind::ForeignKey { columns, table: bare_name(table, place)?, referred }))
}
