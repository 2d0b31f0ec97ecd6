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
fn a_copy_of_the_first_configuration_by_name_has_the_entry_and_comes_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let put = || put_entry(folder.path(), &entry());
    assert!(matches!(put(), Err(FilesError::NoNetwork(_))));
    let own = folder.path().join(OWN);
    let [first, second] = ["00-a.conflist", "20-b.conflist"].map(|name| folder.path().join(name));
    for path in [&second, &first] {
        fs::write(path, LIST).unwrap();
    }
    fs::write(folder.path().join("00--a.txt"), "").unwrap();
    fs::set_permissions(&first, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(put().unwrap(), (first.clone(), true));
    assert_eq!(put().unwrap(), (first.clone(), false));
    assert_eq!(last_plugin(&own), entry());
    assert!(own < first, "runtimes take the first by name");
    assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o600);
    for path in [&first, &second] {
        assert_eq!(fs::read_to_string(path).unwrap(), LIST);
    }
    // Its installer writes it anew, or somebody ours: as it was, and with what is new.
    fs::write(&first, LIST).unwrap();
    assert_eq!(put().unwrap(), (first.clone(), false));
    fs::write(&first, LIST.replace("pods", "others")).unwrap();
    assert_eq!(put().unwrap(), (first.clone(), true));
    assert!(fs::read_to_string(&own).unwrap().contains("others"));
    fs::remove_file(&own).unwrap();
    assert_eq!(put().unwrap(), (first.clone(), true));
    // What can't be read leaves the last copy; without a network there is none.
    fs::write(&first, "{").unwrap();
    assert!(put().is_err());
    assert_eq!(last_plugin(&own), entry());
    for path in [&first, &second] {
        fs::remove_file(path).unwrap();
    }
    assert!(matches!(put(), Err(FilesError::NoNetwork(_))));
    assert!(!own.exists());
    // Nothing may come before it.
    let before = folder.path().join("0-a.conflist");
    fs::write(&before, LIST).unwrap();
    assert!(matches!(put(), Err(FilesError::Before { .. })));
    let faults = take_out(folder.path(), folder.path());
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(names(folder.path()), ["0-a.conflist", "00--a.txt"]);
}

#[test]
fn a_single_configuration_is_copied_as_a_list_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let single = folder.path().join("10-a.conf");
    fs::write(&single, SINGLE).unwrap();
    let put = || put_entry(folder.path(), &entry());
    assert_eq!(put().unwrap(), (single.clone(), true));
    assert_eq!(put().unwrap(), (single.clone(), false));
    assert_eq!(names(folder.path()), [OWN, "10-a.conf"]);
    assert_eq!(last_plugin(&folder.path().join(OWN)), entry());
    assert!(take_out(folder.path(), folder.path()).is_empty());
    assert_eq!(names(folder.path()), ["10-a.conf"]);
    assert_eq!(fs::read_to_string(&single).unwrap(), SINGLE);
}

#[test]
fn what_an_agent_before_this_one_has_done_is_undone() {
    let folder = tempfile::tempdir().unwrap();
    let [list, aside] =
        ["10-a.conflist", "10-a.conf.nodemesh-aside"].map(|n| folder.path().join(n));
    let single = folder.path().join("10-a.conf");
    let entered = conflist::with_entry(LIST, &entry()).unwrap();
    fs::write(&list, &entered).unwrap();
    let put = || put_entry(folder.path(), &entry()).unwrap();
    assert_eq!(put(), (list.clone(), true));
    assert_eq!(names(folder.path()), [OWN, "10-a.conflist"]);
    let found: Value = serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap();
    assert_eq!(found, serde_json::from_str::<Value>(LIST).unwrap());
    // One that it had made of a single plugin's.
    fs::write(&list, &entered).unwrap();
    fs::write(&aside, SINGLE).unwrap();
    put();
    assert_eq!(names(folder.path()), [OWN, "10-a.conf"]);
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
