//! `MAP(VARCHAR, …)` as a column's type: DataFusion parses it, and leaves it to others what it means.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{TableReference, not_impl_err};
use datafusion::error::Result;
use datafusion::logical_expr::planner::{ContextProvider, TypePlanner};
use datafusion::logical_expr::{AggregateUDF, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF};
use datafusion::sql::planner::SqlToRel;
use datafusion::sql::sqlparser::ast::{ColumnDef, DataType as SqlType, Ident};

use super::session;

/// Plans the type MAP.
#[derive(Debug)]
pub struct MapTypes;

impl TypePlanner for MapTypes {
    fn plan_type_field(&self, sql_type: &SqlType) -> Result<Option<FieldRef>> {
        let SqlType::Map(key, value) = sql_type else { return Ok(None) };
        let column = |name: &str, data_type: &SqlType| ColumnDef {
            name: Ident::new(name),
            data_type: data_type.clone(),
            options: Vec::new(),
        };
        let columns = vec![column("key", key), column("value", value)];
        let types = OnlyTypes(session::base_config().options().as_ref().clone());
        let fields =
            SqlToRel::new_with_options(&types, (&types.0.sql_parser).into()).build_schema(columns)?.fields;
        let fields = vec![fields[0].as_ref().clone().with_nullable(false), fields[1].as_ref().clone()];
        // Named as DataFusion's own functions name them.
        let entries = Field::new("entries", DataType::Struct(fields.into()), false);
        Ok(Some(Arc::new(Field::new("", DataType::Map(Arc::new(entries), false), true))))
    }
}

/// What the types of keys and values are planned with: no tables, no functions.
struct OnlyTypes(ConfigOptions);

impl ContextProvider for OnlyTypes {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        not_impl_err!("a type needs no table {name}")
    }
    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(MapTypes))
    }
    fn get_function_meta(&self, _: &str) -> Option<Arc<ScalarUDF>> {
        None
    }
    fn get_higher_order_meta(&self, _: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }
    fn get_aggregate_meta(&self, _: &str) -> Option<Arc<AggregateUDF>> {
        None
    }
    fn get_window_meta(&self, _: &str) -> Option<Arc<WindowUDF>> {
        None
    }
    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }
    fn options(&self) -> &ConfigOptions {
        &self.0
    }
    fn udf_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn udaf_names(&self) -> Vec<String> {
        Vec::new()
    }
    fn udwf_names(&self) -> Vec<String> {
        Vec::new()
    }
}
