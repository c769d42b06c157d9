//! YAML files as JSON values, which are easy to look into; merge keys (`<<`) are merged.

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

use crate::text_of;

/// The documents of a file.
pub(crate) fn documents(path: &str) -> Vec<Value> {
    parsed(&text_of(path), path)
}

/// The documents of a text, which stands in `path`.
pub(crate) fn parsed(text: &str, path: &str) -> Vec<Value> {
    let all = Yaml::load_from_str(text).unwrap_or_else(|error| panic!("{path}: {error}"));
    all.iter().map(value).collect()
}

/// The objects of a file of Kubernetes': each document, and each item of one that is a List.
pub(crate) fn objects(path: &str) -> Vec<Value> {
    let items = |mut document: Value| match document["kind"] == "List" {
        true => serde_json::from_value(document["items"].take()).unwrap(),
        false => vec![document],
    };
    documents(path).into_iter().flat_map(items).collect()
}

fn value(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(flag)) => Value::from(*flag),
        Yaml::Value(Scalar::Integer(number)) => Value::from(*number),
        Yaml::Value(Scalar::FloatingPoint(number)) => Value::from(number.into_inner()),
        Yaml::Value(Scalar::String(text)) => Value::from(text.as_ref()),
        Yaml::Sequence(items) => items.iter().map(value).collect(),
        Yaml::Mapping(entries) => {
            let mut own = Map::new();
            let mut merged = Map::new();
            for (key, entry) in entries {
                match (key.as_str(), value(entry)) {
                    (Some("<<"), Value::Object(shared)) => merged.extend(shared),
                    (Some(name), entry) => drop(own.insert(name.to_owned(), entry)),
                    (None, _) => panic!("a key that is no text: {key:?}"),
                }
            }
            merged.extend(own);
            Value::Object(merged)
        }
        other => panic!("YAML that these files do not need: {other:?}"),
    }
}
