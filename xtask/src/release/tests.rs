//! Images and archives, of stand-ins for the binaries.

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use super::*;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn release() -> Release {
    Release {
        version: "1.2.3".to_owned(),
        license: "Apache-2.0".to_owned(),
        repository: "https://example.org/nodemesh".to_owned(),
        commit: "c0ffee".to_owned(),
        time_s: 1_700_000_000,
    }
}

/// A folder with stand-ins, made at some time. It is removed when this is dropped.
struct Built(PathBuf);

impl Built {
    fn at(name: &str, made: SystemTime) -> Self {
        let folder = format!("nodemesh-image-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        fs::create_dir_all(&folder).unwrap();
        for program in build::PROGRAMS {
            let path = folder.join(program);
            fs::write(&path, format!("the program {program}")).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(made).unwrap();
        }
        Self(folder)
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn packed(name: &str, built: &Built) -> image::Image {
    let recipe = recipe(workspace(), name).unwrap();
    image::pack(name, &recipe, &built.0, &release()).unwrap()
}

/// A file of an archive, or its list of files, by tar.
fn untar(archive: &[u8], arguments: &[&str]) -> Vec<u8> {
    let folder = Built::at("untar", SystemTime::now());
    let path = folder.0.join("archive");
    fs::write(&path, archive).unwrap();
    let mut tar = Command::new("tar");
    let output = tar.arg("-f").arg(&path).args(arguments);
    let output = output.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn json(archive: &[u8], path: &str) -> Value {
    serde_json::from_slice(&untar(archive, &["-xO", path])).unwrap()
}

fn blob(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap();
    format!("blobs/{}", digest.replace(':', "/"))
}

#[test]
fn built_twice_an_image_is_the_same() {
    let now = SystemTime::now();
    let first = Built::at("first", now);
    let second = Built::at("second", now - Duration::from_secs(86_400));
    for (name, _) in IMAGES {
        let (one, other) = (packed(name, &first), packed(name, &second));
        assert_eq!(one.digest, other.digest);
        assert!(one.archive == other.archive);
    }
    fs::write(second.0.join("mesh-agent"), "another program").unwrap();
    let (one, other) = (packed("mesh-agent", &first), packed("mesh-agent", &second));
    assert_ne!(one.digest, other.digest);
}

#[test]
fn an_image_has_our_programs_and_nothing_else_and_runs_as_its_user() {
    let built = Built::at("inside", SystemTime::now());
    for (name, user, expected) in [
        (
            "mesh-agent",
            "0:0",
            "usr/\nusr/bin/\nusr/bin/mesh-agent\nusr/bin/nodemesh-cni\n",
        ),
        (
            "mesh-control",
            "65532:65532",
            "usr/\nusr/bin/\nusr/bin/mesh-control\nusr/bin/meshctl\n",
        ),
    ] {
        let image = packed(name, &built);
        let index = json(&image.archive, "index.json");
        let manifest = json(&image.archive, &blob(&index["manifests"][0]));
        assert_eq!(index["manifests"][0]["digest"], image.digest);
        let config = json(&image.archive, &blob(&manifest["config"]));
        assert_eq!(config["config"]["User"], user);
        assert_eq!(
            config["config"]["Entrypoint"],
            serde_json::json!([format!("/usr/bin/{name}")])
        );
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
        let layer = untar(&image.archive, &["-xO", &blob(&manifest["layers"][0])]);
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", sha256(&layer))
        );
        assert_eq!(String::from_utf8(untar(&layer, &["-t"])).unwrap(), expected);
        let program = untar(&layer, &["-xO", &format!("usr/bin/{name}")]);
        assert_eq!(program, format!("the program {name}").into_bytes());
    }
}

/// Kubelet compares the pod's claim to run as no root with the image's user.
#[test]
fn the_charts_user_is_the_images() {
    let chart = workspace().join(CHART).join("templates/control.yaml");
    let chart = fs::read_to_string(chart).unwrap();
    let recipe = recipe(workspace(), "mesh-control").unwrap();
    let (uid, gid) = recipe.user.split_once(':').unwrap();
    assert!(chart.contains(&format!("runAsUser: {uid}\n")));
    assert!(chart.contains(&format!("runAsGroup: {gid}\n")));
    assert!(chart.contains(&format!("fsGroup: {gid}\n")));
}

#[test]
fn a_bill_has_what_is_compiled_in_with_licence_and_checksum() {
    let packages = Packages::read(workspace()).unwrap();
    let bill = packages
        .bill("mesh-control", IMAGES[1].1, &release())
        .unwrap();
    let components = bill["components"].as_array().unwrap();
    let of = |name: &str| {
        components
            .iter()
            .find(|component| component["name"] == name)
    };
    let rustls = of("rustls").expect("rustls is compiled in");
    assert_eq!(rustls["hashes"][0]["content"].as_str().unwrap().len(), 64);
    assert!(of("kube").is_some() && of("glibc").is_some());
    assert!(of("aya").is_none(), "aya is the agent's alone");
    assert!(of("proptest").is_none(), "proptest is for tests alone");
    let unlicensed: Vec<_> = components
        .iter()
        .filter(|component| component["licenses"][0]["expression"] == "")
        .collect();
    assert!(unlicensed.is_empty(), "{unlicensed:#?}");
    let agent = packages
        .bill("mesh-agent", IMAGES[0].1, &release())
        .unwrap();
    let agent = agent.to_string();
    assert!(
        agent.contains("pkg:cargo/aya-ebpf@"),
        "the kernel programs are in the agent"
    );
}

#[test]
fn the_chart_is_packed_whole_and_without_its_tests() {
    let mut files = Files::new();
    collect(&workspace().join(CHART), "nodemesh", &mut files).unwrap();
    assert!(files.contains_key("nodemesh/Chart.yaml"));
    assert!(!files.keys().any(|path| path.contains("/ci/")));
    let definitions = &files["nodemesh/files/definitions.yaml"].content;
    let expected = fs::read(workspace().join("deploy/definitions.yaml")).unwrap();
    assert!(*definitions == expected, "the link's target is packed");
}
