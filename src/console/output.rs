//! Files that commands write.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::options::UsageError;

/// A destination known to be writable, whose earlier content is still there.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file.
    File(File),
}

impl Output {
    /// Opens a file for answers, or standard output. `taken` lists files that it must not be, with
    /// what each is.
    ///
    /// # Errors
    /// When the file is one of those, or cannot be written.
    pub fn open(path: Option<&Path>, taken: &[(PathBuf, &str)]) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::Stdout);
        };
        let place = resolve(path);
        for (other, what) in taken {
            if place.is_some() && place == resolve(other) {
                let shown = path.display();
                let message = format!("--out {shown}: this is {what}; choose another file");
                return Err(UsageError(message).into());
            }
        }
        // Not truncated yet: a run that fails to start must not destroy earlier answers.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self::File(file))
    }

    /// Truncates the file and returns a writer to it.
    ///
    /// # Errors
    /// When the file cannot be truncated.
    pub fn begin(self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::File(file) => {
                // A device or a pipe cannot be truncated.
                if file.metadata()?.is_file() {
                    file.set_len(0)?;
                }
                Box::new(file)
            }
        })
    }
}

/// Replaces a file atomically, so that nobody reads a partial one.
///
/// # Errors
/// When the file cannot be written.
pub fn replace_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The absolute path of a file that may not exist yet.
fn resolve(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
        Some(folder.join(path.file_name()?))
    })
}
