use serde_json::json;

use super::*;
use crate::cni::PluginConfig;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"pods","type":"bridge"}"#;

fn entry() -> Value {
    conflist::entry(&PluginConfig::default())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn last_plugin(path: &Path) -> Value {
    let list: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    list["plugins"].as_array().unwrap().last().unwrap().clone()
}

#[test]
fn the_first_configuration_by_name_gets_the_entry() {
    let folder = tempfile::tempdir().unwrap();
    let put = || put_entry(folder.path(), &entry());
    assert!(matches!(put(), Err(FilesError::NoNetwork(_))));
    let (first, second) = (
        folder.path().join("10-a.conflist"),
        folder.path().join("20-b.conflist"),
    );
    for path in [&second, &first] {
        fs::write(path, LIST).unwrap();
    }
    fs::write(folder.path().join("00-readme.txt"), "").unwrap();
    fs::set_permissions(&first, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(put().unwrap(), (first.clone(), true));
    assert_eq!(put().unwrap(), (first.clone(), false));
    assert_eq!(last_plugin(&first), entry());
    assert_eq!(fs::metadata(&first).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(&second).unwrap(), LIST);
    // Its installer writes it anew.
    fs::write(&first, LIST).unwrap();
    assert_eq!(put().unwrap(), (first, true));
    let faults = take_out(folder.path(), folder.path());
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(
        names(folder.path()),
        ["00-readme.txt", "10-a.conflist", "20-b.conflist"]
    );
}

#[test]
fn a_single_configuration_is_replaced_by_a_list_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let single = folder.path().join("10-a.conf");
    let list = folder.path().join("10-a.conflist");
    for _ in 0..2 {
        fs::write(&single, SINGLE).unwrap();
        assert_eq!(
            put_entry(folder.path(), &entry()).unwrap(),
            (list.clone(), true)
        );
        assert_eq!(
            names(folder.path()),
            ["10-a.conf.nodemesh-aside", "10-a.conflist"]
        );
        assert_eq!(
            put_entry(folder.path(), &entry()).unwrap(),
            (list.clone(), false)
        );
    }
    assert!(take_out(folder.path(), folder.path()).is_empty());
    assert_eq!(names(folder.path()), ["10-a.conf"]);
    assert_eq!(fs::read_to_string(&single).unwrap(), SINGLE);
}

#[test]
fn what_is_broken_is_told_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("10-a.conflist");
    for text in [
        "",
        "{\"plugins\":",
        r#"{"cniVersion":"0.1.0","plugins":[{}]}"#,
    ] {
        fs::write(&path, text).unwrap();
        let fault = put_entry(folder.path(), &entry()).unwrap_err().to_string();
        assert!(fault.contains("10-a.conflist"), "{fault}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    let nowhere = folder.path().join("none");
    assert!(put_entry(&nowhere, &json!({})).is_err());
}

#[test]
fn the_binary_is_put_back_whatever_became_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("source");
    fs::write(&plugin, vec![7; 200_000]).unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let path = bin.join(ENTRY_TYPE);
    let mut known = None;
    let mut put = || put_binary(&plugin, &bin, &mut known).unwrap();
    assert!(put());
    assert!(!put());
    let spoil: [&dyn Fn(); 4] = [
        &|| fs::remove_file(&path).unwrap(),
        &|| fs::write(&path, vec![8; 200_000]).unwrap(),
        &|| fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap(),
        &|| {
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&plugin, &path).unwrap();
        },
    ];
    for spoil in spoil {
        spoil();
        assert!(put());
        assert!(!put());
        assert_eq!(fs::read(&path).unwrap(), vec![7; 200_000]);
    }
    assert_eq!(names(&bin), [ENTRY_TYPE]);
}
