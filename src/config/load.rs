//! Defaults < file < environment < flags, with every error reported at once.

use std::{fmt, fs, path::Path};

use toml::de::{DeTable, DeValue};

use super::{sections::Config, setting::RawValue};

/// One error of the configuration, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// `FILE:LINE`, a variable's name or a flag.
    pub place: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Settings from the command line.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Flag, `section.field` and value.
    entries: Vec<(String, String, String)>,
}

impl Overrides {
    /// Sets `section.field` on behalf of a flag, whose name appears in error messages.
    pub fn set(&mut self, flag: &str, path: &str, value: impl Into<String>) {
        self.entries
            .push((flag.to_owned(), path.to_owned(), value.into()));
    }
}

impl Config {
    /// Loads the configuration.
    ///
    /// `variables` are the process environment's pairs; those that do not begin with
    /// `PROMPTYARD_` are ignored, as are `PROMPTYARD_TEST_*` and `PROMPTYARD_CONFIG`. One that ends in
    /// `_FILE` names a file with the setting's value, as secret stores provide it.
    ///
    /// # Errors
    /// Every error of the file, the environment and the flags.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut config = Self::default();
        let mut errors = Vec::new();
        if let Some(path) = file {
            let place = path.display().to_string();
            match fs::read_to_string(path) {
                Ok(text) => config.apply_file(&place, &text, &mut errors),
                Err(error) => errors.push(ConfigError {
                    place,
                    message: format!("cannot read the file: {error}"),
                }),
            }
        }
        config.apply_environment(variables, &mut errors);
        for (flag, path, value) in &overrides.entries {
            if let Err(message) = config.apply_path(path, &RawValue::Text(value)) {
                errors.push(ConfigError {
                    place: flag.clone(),
                    message,
                });
            }
        }
        if errors.is_empty() {
            Ok(config)
        } else {
            Err(errors)
        }
    }

    fn apply_file(&mut self, place: &str, text: &str, errors: &mut Vec<ConfigError>) {
        let at = |offset: usize| {
            let line = text[..offset.min(text.len())].matches('\n').count() + 1;
            format!("{place}:{line}")
        };
        let mut found = Vec::new();
        let mut report = |offset: usize, message: String| found.push((offset, message));
        let (table, syntax) = DeTable::parse_recoverable(text);
        for error in syntax {
            let offset = error.span().map_or(0, |span| span.start);
            report(offset, error.message().to_owned());
        }
        for (name, value) in table.get_ref() {
            let name_at = name.span().start;
            let Some(section) = self.section_mut(name.get_ref()) else {
                let known = Self::SECTIONS.join(", ");
                report(
                    name_at,
                    format!("unknown section [{}]; known are {known}", name.get_ref()),
                );
                continue;
            };
            let DeValue::Table(fields) = value.get_ref() else {
                report(
                    name_at,
                    format!("{} is a section: write [{0}]", name.get_ref()),
                );
                continue;
            };
            for (field, value) in fields {
                if let Err(message) = section.set(field.get_ref(), &RawValue::Toml(value.get_ref()))
                {
                    let path = format!("{}.{}", name.get_ref(), field.get_ref());
                    report(field.span().start, format!("{path}: {message}"));
                }
            }
        }
        // The parser sorts tables by name; errors are reported in the order of the file.
        found.sort_by_key(|(offset, _)| *offset);
        errors.extend(found.into_iter().map(|(offset, message)| ConfigError {
            place: at(offset),
            message,
        }));
    }

    fn apply_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
        errors: &mut Vec<ConfigError>,
    ) {
        let mut variables: Vec<_> = variables
            .into_iter()
            .filter(|(name, _)| name.starts_with("PROMPTYARD_"))
            .filter(|(name, _)| {
                !name.starts_with("PROMPTYARD_TEST_") && name != "PROMPTYARD_CONFIG"
            })
            .collect();
        variables.sort();
        for (variable, value) in variables {
            let of_file = variable.strip_suffix("_FILE").and_then(Self::path_of);
            let outcome = match (Self::path_of(&variable), of_file) {
                (Some((section, field)), _) => self.apply(section, &field, &RawValue::Text(&value)),
                (None, Some((section, field))) => fs::read_to_string(&value)
                    .map_err(|error| format!("cannot read {value}: {error}"))
                    .and_then(|text| {
                        // Editors and secret stores end files with a line break.
                        let text = text.trim_end_matches(['\r', '\n']);
                        self.apply(section, &field, &RawValue::Text(text))
                    }),
                (None, None) => {
                    Err("no such setting; `promptyard config show` lists them".to_owned())
                }
            };
            if let Err(message) = outcome {
                errors.push(ConfigError {
                    place: variable,
                    message,
                });
            }
        }
    }

    /// The section and field that a `PROMPTYARD_*` variable sets.
    pub fn path_of(variable: &str) -> Option<(&'static str, String)> {
        let rest = variable.strip_prefix("PROMPTYARD_")?.to_lowercase();
        let config = Self::default();
        Self::SECTIONS.into_iter().find_map(|name| {
            let field = rest.strip_prefix(name)?.strip_prefix('_')?;
            let section = config.section(name)?;
            let known = section.fields().iter().any(|f| f.name == field);
            known.then(|| (name, field.to_owned()))
        })
    }

    fn apply_path(&mut self, path: &str, raw: &RawValue<'_>) -> Result<(), String> {
        let Some((section, field)) = path.split_once('.') else {
            return Err(format!("expected section.field=value, found {path:?}"));
        };
        self.apply(section, field, raw)
    }

    fn apply(&mut self, section: &str, field: &str, raw: &RawValue<'_>) -> Result<(), String> {
        self.section_mut(section)
            .ok_or_else(|| {
                format!(
                    "unknown section {section:?}; known are {}",
                    Self::SECTIONS.join(", ")
                )
            })?
            .set(field, raw)
            .map_err(|message| format!("{section}.{field}: {message}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("promptyard.toml");
        fs::write(&path, text).expect("write");
        let variables = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(&path), variables, &Overrides::default())
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_defaults() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("promptyard.toml");
        fs::write(
            &path,
            "[router]\nprefetch = 10\nbatch_max = 20\nthreshold = 1",
        )
        .expect("write");
        let variables = [("PROMPTYARD_ROUTER_BATCH_MAX".to_owned(), "30".to_owned())];
        let mut overrides = Overrides::default();
        overrides.set("--set", "router.linger_ms", "7");
        let config = Config::load(Some(&path), variables, &overrides).expect("valid");
        assert_eq!(config.router.prefetch, 10);
        assert_eq!(config.router.batch_max, 30);
        assert_eq!(config.router.linger_ms, 7);
        assert_eq!(config.router.threshold, 1.0);
        assert_eq!(
            config.worker.attempts_max,
            WorkerConfig::default().attempts_max
        );
    }

    use super::super::WorkerConfig;

    #[test]
    fn every_error_is_reported_with_its_line() {
        let errors = load(
            "[router]\nprefetch = \"many\"\nthreshold = 2.0\nprefech = 1\n\n[rooter]\nx = 1\n[broker]\nurl = \"http://x\"\n",
            &[("PROMPTYARD_WORKER_ATTEMPTS_MAX", "0"), ("PROMPTYARD_NO_SUCH", "1")],
        )
        .expect_err("five errors of the file, two of the environment");
        let lines: Vec<_> = errors
            .iter()
            .map(|f| {
                f.place
                    .rsplit(['/', '\\'])
                    .next()
                    .expect("place")
                    .to_owned()
            })
            .collect();
        for place in [
            "promptyard.toml:2",
            "promptyard.toml:3",
            "promptyard.toml:4",
            "promptyard.toml:6",
            "promptyard.toml:9",
        ] {
            assert!(
                lines.iter().any(|l| l == place),
                "{place} missing in {errors:?}"
            );
        }
        assert!(lines.iter().any(|l| l == "PROMPTYARD_WORKER_ATTEMPTS_MAX"));
        assert!(lines.iter().any(|l| l == "PROMPTYARD_NO_SUCH"));
        assert_eq!(errors.len(), 7);
        assert!(errors[0].message.contains("expected"), "{errors:?}");
    }

    #[test]
    fn secrets_may_come_from_files() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("store");
        fs::write(&path, "postgres://me:hunter2@host/db\n").expect("write");
        let path = path.display().to_string();
        let config = load("", &[("PROMPTYARD_STORE_URL_FILE", &path)]).expect("valid");
        assert_eq!(config.store.url.expose(), "postgres://me:hunter2@host/db");
        let errors = load("", &[("PROMPTYARD_STORE_URL_FILE", "/no/such/file")]);
        let errors = errors.expect_err("there is no such file");
        assert_eq!(errors[0].place, "PROMPTYARD_STORE_URL_FILE");
        let errors = load("", &[("PROMPTYARD_NOTHING_FILE", &path)]);
        assert!(
            errors.expect_err("no such setting")[0]
                .message
                .contains("no such setting")
        );
    }

    #[test]
    fn numbers_may_have_another_base() {
        let config = load(
            "[router]\nprefetch = 0x10\nbatch_max = 0b11\nlinger_ms = 0o17\nthreshold = 0x1\n",
            &[],
        )
        .expect("valid");
        assert_eq!(config.router.prefetch, 16);
        assert_eq!(config.router.batch_max, 3);
        assert_eq!(config.router.linger_ms, 15);
        assert_eq!(config.router.threshold, 1.0);
        let errors = load("[router]\nprefetch = 0xfffff", &[]).expect_err("too large");
        assert!(errors[0].message.ends_with("found 0xfffff"), "{errors:?}");
    }

    #[test]
    fn syntax_errors_have_a_line() {
        let errors = load("[router]\nprefetch = = 3\n", &[]).expect_err("syntax");
        assert!(errors[0].place.ends_with("promptyard.toml:2"), "{errors:?}");
    }

    #[test]
    fn the_shown_configuration_has_no_secrets_and_can_be_loaded() {
        let mut overrides = Overrides::default();
        overrides.set("--broker", "broker.url", "amqp://me:hunter2@host:5672/%2f");
        overrides.set("--set", "small.api_key", "sk-12345");
        let config = Config::load(None, [], &overrides).expect("valid");
        let shown = config.to_toml();
        assert!(
            !shown.contains("hunter2") && !shown.contains("sk-12345"),
            "{shown}"
        );
        assert!(!format!("{config:?}").contains("hunter2"));
        load(&shown, &[]).expect("what is shown can be loaded");
    }

    #[test]
    fn a_url_without_a_host_keeps_its_scheme_when_it_is_masked() {
        let config = load("[store]\nurl = \"sqlite:me@home.db\"", &[]).expect("valid");
        assert_eq!(config.store.url.masked(), "sqlite:***");
        load(&config.to_toml(), &[]).expect("what is shown can be loaded");
    }
}
