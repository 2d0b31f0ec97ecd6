//! The plugin's entry in a conflist: texts in, texts out.

use serde_json::{Value, json};

use crate::cni::{ENTRY_TYPE, PluginConfig, VERSIONS};

/// Why a network's configuration can't get the entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConflistError {
    #[error("it is no JSON ({0}): whoever writes it may not be done")]
    Json(String),
    #[error("it has no list \"plugins\": nothing can be chained to it")]
    NoPlugins,
    #[error("its cniVersion is {0:?}, the plugin speaks {list}", list = VERSIONS.join(", "))]
    Version(String),
}

/// The entry.
pub(super) fn entry(config: &PluginConfig) -> Value {
    let mut entry = serde_json::to_value(config).unwrap_or_default();
    entry["type"] = ENTRY_TYPE.into();
    entry
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == ENTRY_TYPE
}

fn parse(text: &str) -> Result<Value, ConflistError> {
    let conflist: Value =
        serde_json::from_str(text).map_err(|e| ConflistError::Json(e.to_string()))?;
    match conflist["plugins"].is_array() {
        true => Ok(conflist),
        false => Err(ConflistError::NoPlugins),
    }
}

fn write(conflist: &Value) -> String {
    // Alternate form: with line breaks.
    format!("{conflist:#}\n")
}

/// The conflist with the entry at its end, and nowhere else.
pub(super) fn with_entry(text: &str, entry: &Value) -> Result<String, ConflistError> {
    let mut conflist = parse(text)?;
    let version = conflist["cniVersion"].as_str().unwrap_or_default();
    if !VERSIONS.contains(&version) {
        return Err(ConflistError::Version(version.to_owned()));
    }
    let plugins = plugins(&mut conflist)?;
    plugins.retain(|plugin| !is_ours(plugin));
    if plugins.is_empty() {
        return Err(ConflistError::NoPlugins);
    }
    plugins.push(entry.clone());
    Ok(write(&conflist))
}

/// The conflist without the entry; `None` if it has none.
pub(super) fn without_entry(text: &str) -> Result<Option<String>, ConflistError> {
    let mut conflist = parse(text)?;
    let plugins = plugins(&mut conflist)?;
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    let changed = plugins.len() != before;
    Ok(changed.then(|| write(&conflist)))
}

fn plugins(conflist: &mut Value) -> Result<&mut Vec<Value>, ConflistError> {
    conflist["plugins"]
        .as_array_mut()
        .ok_or(ConflistError::NoPlugins)
}

/// A conflist of a single plugin's configuration, as runtimes make one of it.
pub(super) fn of_single(text: &str) -> Result<String, ConflistError> {
    let single: Value =
        serde_json::from_str(text).map_err(|e| ConflistError::Json(e.to_string()))?;
    if !single["type"].is_string() {
        return Err(ConflistError::NoPlugins);
    }
    let conflist = json!({
        "cniVersion": single["cniVersion"],
        "name": single["name"],
        "plugins": [single],
    });
    Ok(write(&conflist))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","mtu":1500},{"type":"portmap"}]}"#;

    fn ours() -> Value {
        entry(&PluginConfig::default())
    }

    fn types(text: &str) -> Vec<String> {
        let conflist: Value = serde_json::from_str(text).unwrap();
        let plugins = conflist["plugins"].as_array().unwrap().clone();
        let kinds = plugins
            .iter()
            .map(|p| p["type"].as_str().unwrap().to_owned());
        kinds.collect()
    }

    #[test]
    fn the_entry_is_the_last_and_the_only_one() {
        let text = with_entry(BRIDGE, &ours()).unwrap();
        assert_eq!(types(&text), ["bridge", "portmap", ENTRY_TYPE]);
        assert_eq!(with_entry(&text, &ours()).unwrap(), text);
        // Somebody has put another behind it, or it twice, or it is one of an earlier agent.
        let mut conflist: Value = serde_json::from_str(&text).unwrap();
        let old = json!({"type": ENTRY_TYPE, "timeoutMs": 1});
        conflist["plugins"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "tuning"}));
        conflist["plugins"].as_array_mut().unwrap().push(old);
        let again = with_entry(&conflist.to_string(), &ours()).unwrap();
        assert_eq!(types(&again), ["bridge", "portmap", "tuning", ENTRY_TYPE]);
        // Taken out, all is as it was.
        let without = without_entry(&text).unwrap().unwrap();
        let (without, before): (Value, Value) = (
            serde_json::from_str(&without).unwrap(),
            serde_json::from_str(BRIDGE).unwrap(),
        );
        assert_eq!(without, before);
        assert_eq!(without_entry(BRIDGE).unwrap(), None);
    }

    #[test]
    fn what_can_not_be_chained_is_told() {
        let old = BRIDGE.replace("1.0.0", "0.2.0");
        assert_eq!(
            with_entry(&old, &ours()),
            Err(ConflistError::Version("0.2.0".to_owned()))
        );
        assert!(matches!(
            with_entry("{", &ours()),
            Err(ConflistError::Json(_))
        ));
        let none = r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#;
        for text in [none, "{}", r#"{"plugins":7}"#] {
            assert!(with_entry(text, &ours()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let single = r#"{"cniVersion":"0.4.0","name":"pods","type":"bridge","mtu":9000}"#;
        let list = of_single(single).unwrap();
        let text = with_entry(&list, &ours()).unwrap();
        assert_eq!(types(&text), ["bridge", ENTRY_TYPE]);
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(
            (&list["name"], &list["cniVersion"]),
            (&json!("pods"), &json!("0.4.0"))
        );
        assert_eq!(list["plugins"][0]["mtu"], 9000);
        assert!(of_single("[]").is_err());
    }
}
