//! `overlayd lab graph`: a lab as a picture.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Exit, exe, say};
use crate::lab::graph::{Picture, Topology};
use crate::lab::topology::Lab;

pub(super) fn main(name: &str, svg: &Path) -> Result<Exit> {
    let lab = Lab::load(name, &exe()?)?;
    let picture = Picture {
        topology: Topology::seen(&lab, &[])?,
        ..Picture::default()
    };
    if svg.as_os_str() == "-" {
        say(picture.to_string().trim_end());
    } else {
        std::fs::write(svg, picture.to_string())
            .with_context(|| format!("cannot write {}", svg.display()))?;
        tell!("overlayd: drew lab {name:?} into {}", svg.display());
    }
    Ok(Exit::Ok)
}
