//! The part of container files that ours use, filled without a container engine.

use anyhow::{Context, Result, bail, ensure};

/// What a container file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// Files from the build's folder, and the folder of the image that they go to.
    pub(crate) copies: Vec<(Vec<String>, String)>,
    /// `UID:GID`.
    pub(crate) user: String,
    /// The program, by its path.
    pub(crate) entrypoint: Vec<String>,
    /// Its arguments where none are given.
    pub(crate) arguments: Vec<String>,
}

/// Reads a container file.
///
/// # Errors
/// An instruction that is not among those that are known here, or not complete; an image that isn't
/// from scratch; a user that is no number, which would need `/etc/passwd` in the image.
pub(crate) fn parse(text: &str) -> Result<Recipe> {
    let (mut from, mut user) = (None, None);
    let mut copies = Vec::new();
    let (mut entrypoint, mut arguments) = (Vec::new(), Vec::new());
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (instruction, rest) = line
            .split_once(' ')
            .with_context(|| format!("{line:?} says nothing"))?;
        match instruction {
            "FROM" => from = Some(rest),
            "USER" => user = Some(rest.to_owned()),
            "ENTRYPOINT" => entrypoint = words(rest)?,
            "CMD" => arguments = words(rest)?,
            "COPY" => {
                let mut files: Vec<String> = rest.split(' ').map(str::to_owned).collect();
                let folder = files
                    .pop()
                    .filter(|to| to.starts_with('/') && to.ends_with('/'));
                let folder =
                    folder.with_context(|| format!("{line:?}: name a folder last, /…/"))?;
                ensure!(!files.is_empty(), "{line:?} copies nothing");
                copies.push((files, folder));
            }
            _ => bail!("{instruction} is not known here: {line:?}"),
        }
    }
    ensure!(from == Some("scratch"), "FROM must be scratch");
    let user = user.context("USER is missing")?;
    let numbers = user.split_once(':');
    let numbers = numbers.map(|(uid, gid)| (uid.parse::<u32>(), gid.parse::<u32>()));
    ensure!(
        matches!(numbers, Some((Ok(_), Ok(_)))),
        "USER {user:?} is not UID:GID"
    );
    ensure!(!copies.is_empty(), "nothing is copied");
    ensure!(!entrypoint.is_empty(), "ENTRYPOINT is missing");
    Ok(Recipe {
        copies,
        user,
        entrypoint,
        arguments,
    })
}

/// `["a", "b"]`: the form that no shell reads, and no shell is in the image.
fn words(list: &str) -> Result<Vec<String>> {
    serde_json::from_str(list).with_context(|| format!("{list:?} is no list of texts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_filled_is_refused() {
        let good = "FROM scratch\nCOPY a b /usr/bin/\nUSER 1:2\nENTRYPOINT [\"/usr/bin/a\"]\n";
        let recipe = parse(good).unwrap();
        assert_eq!(
            recipe.copies,
            [(vec!["a".into(), "b".into()], "/usr/bin/".into())]
        );
        for (from, to, why) in [
            ("FROM scratch", "FROM debian", "scratch"),
            ("USER 1:2", "USER nobody", "UID:GID"),
            ("USER 1:2", "", "USER"),
            ("USER 1:2", "USER 1:2\nRUN true", "RUN"),
            ("[\"/usr/bin/a\"]", "/usr/bin/a", "no list"),
            ("COPY a b /usr/bin/", "COPY a b", "folder"),
        ] {
            let error = format!("{:#}", parse(&good.replace(from, to)).unwrap_err());
            assert!(error.contains(why), "{to}: {error}");
        }
    }
}
