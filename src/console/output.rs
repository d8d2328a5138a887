//! Where a run's answers go.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::options::UsageError;

/// A place for answers that is known to be writable and still holds what it held.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file.
    File(File),
}

impl Output {
    /// Opens a file for answers, or standard output. `taken` names files that it must not be, and
    /// what they are.
    ///
    /// # Errors
    /// When it is one of them, or cannot be written.
    pub fn open(path: Option<&Path>, taken: &[(PathBuf, &str)]) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::Stdout);
        };
        let place = resolve(path);
        for (other, what) in taken {
            if place.is_some() && place == resolve(other) {
                let shown = path.display();
                let message = format!("--out {shown}: that is {what}; choose another file");
                return Err(UsageError(message).into());
            }
        }
        // A run that cannot start must not cost the answers of an earlier one.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self::File(file))
    }

    /// Empties the file: now the answers come.
    ///
    /// # Errors
    /// When the file cannot be emptied.
    pub fn begin(self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::File(file) => {
                // A device or a pipe has no length.
                if file.metadata()?.is_file() {
                    file.set_len(0)?;
                }
                Box::new(file)
            }
        })
    }
}

/// The absolute path of a file that may be missing yet.
fn resolve(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
        Some(folder.join(path.file_name()?))
    })
}
