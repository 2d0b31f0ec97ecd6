//! What an API server makes of an object by its CustomResourceDefinition: a double of the part of it that
//! ours use, with rules tried by an implementation of CEL that isn't Kubernetes' own.
#![allow(
    dead_code,
    reason = "a module of several test binaries, each of which uses its part"
)]

use std::collections::HashMap;
use std::sync::Arc;

use cel::extractors::This;
use cel::{Context, Program, Value as Cel};
use ipnet::IpNet;
use mesh_control::sources::kubernetes::definitions::definitions;
use regex::Regex;
use serde_json::Value;

/// A manifest as `kubectl` would send it: keys that are numbers become texts.
pub(crate) fn from_yaml(text: &str) -> Value {
    fn convert(yaml: serde_yaml_ng::Value) -> Value {
        use serde_yaml_ng::Value as Yaml;
        match yaml {
            Yaml::Mapping(map) => map
                .into_iter()
                .map(|(key, value)| {
                    let key = match convert(key) {
                        Value::String(text) => text,
                        other => other.to_string(),
                    };
                    (key, convert(value))
                })
                .collect(),
            Yaml::Sequence(items) => items.into_iter().map(convert).collect(),
            plain => serde_json::to_value(plain).unwrap(),
        }
    }
    convert(serde_yaml_ng::from_str(text).unwrap())
}

/// What is wrong with an object; nothing where it would be written.
///
/// Unknown fields are refused, as `kubectl` has it by default.
pub(crate) fn mistakes(object: &Value) -> Vec<String> {
    let (kind, objects) = (&object["kind"], definitions());
    let definition = objects.iter().find(|d| d["spec"]["names"]["kind"] == *kind);
    let definition = definition.unwrap_or_else(|| panic!("no definition of {kind}"));
    let mut mistakes = Vec::new();
    let version = &definition["spec"]["versions"][0];
    let group = definition["spec"]["group"].as_str().unwrap();
    let api_version = format!("{group}/{}", version["name"].as_str().unwrap());
    if object["apiVersion"] != api_version.as_str() {
        mistakes.push(format!(
            "apiVersion: no {kind} in version {}",
            object["apiVersion"]
        ));
    }
    let mut body = object.clone();
    for field in ["apiVersion", "kind", "metadata"] {
        body.as_object_mut().unwrap().remove(field);
    }
    let schema = &version["schema"]["openAPIV3Schema"];
    prune_nulls(&mut body);
    fill_defaults(schema, &mut body);
    validate(schema, &body, "", &mut mistakes);
    let sound = mistakes.is_empty();
    let policies = objects
        .iter()
        .filter(|o| o["kind"] == "ValidatingAdmissionPolicy");
    for policy in policies.filter(|_| sound) {
        let plural = &definition["spec"]["names"]["plural"];
        let resources = &policy["spec"]["matchConstraints"]["resourceRules"][0]["resources"];
        if !resources.as_array().unwrap().contains(plural) {
            continue;
        }
        for validation in policy["spec"]["validations"].as_array().unwrap() {
            let rule = validation["expression"].as_str().unwrap();
            if !holds(rule, &[("object", object)]) {
                mistakes.push(validation["message"].as_str().unwrap().to_owned());
            }
        }
    }
    mistakes
}

/// A field that is there without a value is as one that isn't there.
fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

fn fill_defaults(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = property.get("default") {
                    fields.entry(name).or_insert_with(|| default.clone());
                }
                if let Some(field) = fields.get_mut(name) {
                    fill_defaults(property, field);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                fill_defaults(&schema["items"], item);
            }
        }
        _ => {}
    }
}

fn validate(schema: &Value, value: &Value, at: &str, mistakes: &mut Vec<String>) {
    let before = mistakes.len();
    let mut wrong = |what: String| mistakes.push(format!("{at}: {what}"));
    let right_type = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        None if schema["x-kubernetes-int-or-string"] == true => value.is_string() || value.is_i64(),
        other => panic!("{at}: type {other:?}"),
    };
    if !right_type {
        return wrong(format!("must be of type {}: {value}", schema["type"]));
    }
    if let Some(values) = schema["enum"].as_array()
        && !values.contains(value)
    {
        wrong(format!("unsupported value {value}"));
    }
    let len = match value {
        Value::String(text) => Some((text.len(), "Length")),
        Value::Array(items) => Some((items.len(), "Items")),
        Value::Object(fields) => Some((fields.len(), "Properties")),
        _ => None,
    };
    if let Some((len, unit)) = len {
        let len = len as u64;
        if schema[format!("min{unit}")]
            .as_u64()
            .is_some_and(|min| len < min)
        {
            wrong(format!("too short: {len}"));
        }
        if schema[format!("max{unit}")]
            .as_u64()
            .is_some_and(|max| len > max)
        {
            wrong(format!("too long: {len}"));
        }
    }
    if let Some(number) = value.as_i64() {
        let beyond = schema["minimum"].as_i64().is_some_and(|min| number < min)
            || schema["maximum"].as_i64().is_some_and(|max| number > max);
        if beyond {
            wrong(format!("{number} is out of range"));
        }
    }
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str())
        && !Regex::new(pattern).unwrap().is_match(text)
    {
        wrong(format!("{text:?} does not match {pattern}"));
    }
    if let Some(fields) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(name.as_str().unwrap()) {
                wrong(format!("{name} is required"));
            }
        }
        for (name, field) in fields {
            let at = format!("{at}.{name}");
            match schema["properties"]
                .get(name)
                .or(schema.get("additionalProperties"))
            {
                Some(schema) => validate(schema, field, &at, mistakes),
                None => mistakes.push(format!("{at}: unknown field")),
            }
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        validate(&schema["items"], item, &format!("{at}[{index}]"), mistakes);
    }
    // Rules are tried on what fits the schema.
    if mistakes.len() > before {
        return;
    }
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        if !holds(rule["rule"].as_str().unwrap(), &[("self", value)]) {
            mistakes.push(format!("{at}: {}", rule["message"].as_str().unwrap()));
        }
    }
}

/// Whether a rule holds, with these variables.
pub(crate) fn holds(rule: &str, variables: &[(&str, &Value)]) -> bool {
    let mut context = Context::default();
    // Kubernetes' own functions for addresses, as far as ours use them.
    let block = |text: &str| text.parse::<IpNet>();
    let is_cidr = move |text: Arc<String>| block(&text).is_ok();
    context.add_function("isCIDR", is_cidr).unwrap();
    context
        .add_function("cidr", |text: Arc<String>| text)
        .unwrap();
    let masked = move |This(text): This<Arc<String>>| {
        block(&text).map_or_else(|_| String::new(), |block| block.trunc().to_string())
    };
    context.add_function("masked", masked).unwrap();
    for (name, value) in variables {
        context.add_variable_from_value(*name, to_cel(value));
    }
    let program = Program::compile(rule).unwrap_or_else(|e| panic!("{rule}: {e}"));
    match program.execute(&context) {
        Ok(Cel::Bool(holds)) => holds,
        other => panic!("{rule} of {variables:?}: {other:?}"),
    }
}

/// As an API server has it: integers are signed.
fn to_cel(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(bool) => Cel::Bool(*bool),
        Value::Number(number) => Cel::Int(number.as_i64().unwrap()),
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(to_cel).collect::<Vec<_>>().into(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.clone(), to_cel(value)));
            fields.collect::<HashMap<String, Cel>>().into()
        }
    }
}
