//! The last known leases on disk, for a start while the store is out of reach.
//!
//! ```text
//! overlayd-leases 1 <SHA-256 of what follows, hexadecimal>
//! {"prefix": …, "config": …, "keys": [{"key": …, "value": …, "create": …, "mod": …, "lease": …}, …]}
//! ```
//!
//! Written beside its place and renamed into it, so that a crash leaves the old or the new one. What the
//! checksum does not vouch for is refused.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::machine::{Kv, Saved};

/// What a saved table begins with: its name and version.
const MAGIC: &str = "overlayd-leases 1 ";
/// A longer file is not ours: ten thousand leases take three megabytes.
const LONGEST: u64 = 64 << 20;

/// Why there is no saved table to use.
#[derive(Debug, thiserror::Error)]
pub enum NoSaved {
    /// None was saved yet.
    #[error("there is none yet")]
    NotFound,
    /// It cannot be read.
    #[error("{0}")]
    Io(io::Error),
    /// It is not what was written.
    #[error("{0}: it is not used; the next table replaces it")]
    Damaged(&'static str),
    /// It is of another overlay.
    #[error(
        "it is of the overlay {0}, not of this one: it is not used; the next table replaces it"
    )]
    Foreign(String),
}

#[derive(Serialize, Deserialize)]
struct Document {
    prefix: String,
    config: Option<String>,
    keys: Vec<Key>,
}

#[derive(Serialize, Deserialize)]
struct Key {
    key: String,
    value: String,
    create: i64,
    #[serde(rename = "mod")]
    modified: i64,
    lease: i64,
}

/// Saves a table. Values that are no text are left out: nobody can read them.
///
/// # Errors
/// Where the file system refuses.
pub fn save(path: &Path, prefix: &str, saved: &Saved) -> io::Result<()> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).ok();
    let keys = saved.kvs.iter().filter_map(|kv| {
        Some(Key {
            key: kv.key.clone(),
            value: text(&kv.value)?,
            create: kv.create_revision,
            modified: kv.mod_revision,
            lease: kv.lease,
        })
    });
    let document = Document {
        prefix: prefix.to_owned(),
        config: saved.config.as_deref().and_then(text),
        keys: keys.collect(),
    };
    let body = serde_json::to_vec(&document)?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let write = || {
        let mut file = File::create(&beside)?;
        writeln!(file, "{MAGIC}{}", checksum(&body))?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().inspect_err(|_| {
        // It would take the room that is missing.
        let _ = fs::remove_file(&beside);
    })
}

/// Reads the table that was saved for the overlay under `prefix`.
///
/// # Errors
/// Why there is none to use.
pub fn load(path: &Path, prefix: &str) -> Result<Saved, NoSaved> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut bytes))
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NoSaved::NotFound,
            _ => NoSaved::Io(error),
        })?;
    let line = bytes.iter().position(|byte| *byte == b'\n');
    let (head, body) = bytes.split_at(line.ok_or(NoSaved::Damaged("its first line is cut off"))?);
    let body = &body[1..];
    let sum = head.strip_prefix(MAGIC.as_bytes()).ok_or(NoSaved::Damaged(
        "it is of another version, or not a saved table",
    ))?;
    if sum != checksum(body).as_bytes() {
        return Err(NoSaved::Damaged("its checksum is wrong"));
    }
    let document: Document = serde_json::from_slice(body)
        .map_err(|_| NoSaved::Damaged("it is not the JSON it should be"))?;
    if document.prefix != prefix {
        return Err(NoSaved::Foreign(document.prefix));
    }
    let kvs = document.keys.into_iter().map(|key| Kv {
        key: key.key,
        value: key.value.into_bytes(),
        create_revision: key.create,
        mod_revision: key.modified,
        lease: key.lease,
    });
    Ok(Saved {
        config: document.config.map(String::into_bytes),
        kvs: kvs.collect(),
    })
}

fn checksum(body: &[u8]) -> String {
    Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Saved {
        Saved {
            config: Some(br#"{"Network":"10.244.0.0/16"}"#.to_vec()),
            kvs: vec![Kv {
                key: "10.244.1.0-24".into(),
                value: br#"{"PublicIP":"10.99.0.1","PublicIPv6":null}"#.to_vec(),
                create_revision: 3,
                mod_revision: 7,
                lease: 12,
            }],
        }
    }

    #[test]
    fn saved_and_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/leases.saved");
        assert!(matches!(load(&path, "/p"), Err(NoSaved::NotFound)));
        for _ in 0..2 {
            save(&path, "/p", &saved()).unwrap();
            assert_eq!(load(&path, "/p").unwrap(), saved());
        }
        assert!(matches!(load(&path, "/q"), Err(NoSaved::Foreign(_))));
        let there: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(there.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn every_damage_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("leases.saved");
        save(&path, "/p", &saved()).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(load(&path, "/p").is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(load(&path, "/p").is_err(), "cut at {at}");
        }
    }
}
