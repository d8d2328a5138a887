//! docker-compose.yml, its CUDA override, the Dockerfile and .env.example hold together and fit the
//! binary: checked with a parser, since no Docker engine is needed to build or test promptyard.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use promptyard::config::{Config, Overrides};
use serde_json::{Map, Value};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn services(file: &Value) -> &Map<String, Value> {
    file["services"].as_object().unwrap()
}

/// The services that run promptyard's own image.
fn own(file: &Value) -> impl Iterator<Item = (&String, &Value)> {
    services(file).iter().filter(|(_, service)| {
        service["image"]
            .as_str()
            .unwrap()
            .starts_with("promptyard:")
    })
}

fn strings(list: &Value) -> Vec<&str> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().map(|item| item.as_str().unwrap()).collect()
}

/// True for `name:tag` whose tag says a version, not just a flavour.
fn is_pinned(image: &str) -> bool {
    image.rsplit_once(':').is_some_and(|(name, tag)| {
        !name.is_empty() && !tag.contains("latest") && tag.split('.').count() >= 3
            || name == "debian" && tag.split('.').count() == 2
    })
}

/// `FROM`, `ARG`, `COPY`, … with their arguments, continuation lines joined.
fn dockerfile() -> Vec<(String, String)> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (word, rest) = line.split_once(' ').unwrap();
            (word.to_owned(), rest.trim().to_owned())
        })
        .collect()
}

/// Names and operators of every `${NAME…}` in a text.
fn interpolations(text: &str) -> Vec<(&str, &str)> {
    let pieces = text.split("${").skip(1);
    pieces
        .map(|piece| {
            let inner = &piece[..piece.find('}').expect("closing brace")];
            let end = inner
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(inner.len());
            inner.split_at(end)
        })
        .collect()
}

/// Replaces interpolations as Compose would: by the default, or by a stand-in for a secret.
fn resolved(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let end = start + rest[start..].find('}').expect("closing brace");
        let inner = &rest[start + 2..end];
        out.push_str(&rest[..start]);
        out.push_str(
            inner
                .split_once(":-")
                .map_or("stand-in", |(_, default)| default),
        );
        rest = &rest[end + 1..];
    }
    out + rest
}

fn seconds(duration: &str) -> u64 {
    let (number, factor) = match duration.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (duration.strip_suffix('s').unwrap(), 1),
    };
    number.parse::<u64>().unwrap() * factor
}

#[test]
fn every_image_is_pinned_to_a_version() {
    for file in ["docker-compose.yml", "docker-compose.cuda.yml"] {
        for (name, service) in services(&yaml(file)) {
            let image = service["image"].as_str().unwrap();
            assert!(is_pinned(image), "{file}: {name} runs {image}");
            let ours = concat!("promptyard:", env!("CARGO_PKG_VERSION"));
            assert_eq!(
                image.starts_with(ours),
                service["build"]["dockerfile"] == "Dockerfile",
                "{file}: {name}: our image is built, all others are pulled"
            );
        }
    }
    let mut arguments = BTreeMap::new();
    let mut stages = BTreeSet::new();
    let mut images = Vec::new();
    for (word, rest) in dockerfile() {
        match word.as_str() {
            "ARG" => {
                let (name, default) = rest.split_once('=').expect("every ARG has a default");
                arguments.insert(name.to_owned(), default.to_owned());
            }
            "FROM" => {
                let (image, stage) = rest.split_once(" AS ").expect("every stage has a name");
                let argument = image.strip_prefix("${").and_then(|i| i.strip_suffix('}'));
                images.push(argument.map_or(image, |name| &arguments[name]).to_owned());
                stages.insert(stage.to_owned());
            }
            _ => {}
        }
    }
    let cuda = yaml("docker-compose.cuda.yml");
    for (name, service) in services(&cuda) {
        for (argument, value) in service["build"]["args"].as_object().unwrap() {
            assert!(
                arguments.contains_key(argument),
                "{name}: no ARG {argument}"
            );
            if argument.ends_with("_IMAGE") {
                images.push(value.as_str().unwrap().to_owned());
            }
        }
    }
    assert!(images.len() >= 5, "{images:?}");
    for image in images {
        assert!(is_pinned(&image), "Dockerfile builds on {image}");
    }
}

#[test]
fn every_mounted_file_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compose = yaml("docker-compose.yml");
    let named = compose["volumes"].as_object().unwrap();
    let mut used = BTreeSet::new();
    for (name, service) in services(&compose) {
        for mount in strings(&service["volumes"]) {
            let source = mount.split(':').next().unwrap();
            if source.starts_with(['.', '/']) {
                assert!(root.join(source).exists(), "{name} mounts {source}");
                assert!(mount.ends_with(":ro"), "{name} may write to {source}");
            } else {
                assert!(named.contains_key(source), "{name}: no volume {source}");
                used.insert(source.to_owned());
            }
        }
        for file in strings(&service["env_file"]) {
            assert!(root.join(file).exists(), "{name} reads {file}");
        }
        if let Some(build) = service["build"].as_object() {
            let folder = root.join(build["context"].as_str().unwrap());
            assert!(folder.join(build["dockerfile"].as_str().unwrap()).exists());
        }
    }
    assert_eq!(used.len(), named.len(), "a volume is declared and not used");

    let mut stages = BTreeSet::new();
    for (word, rest) in dockerfile() {
        match (word.as_str(), rest.split_once(' ')) {
            ("FROM", Some((_, stage))) => {
                stages.insert(stage.trim_start_matches("AS ").to_owned());
            }
            ("COPY", Some((from, _))) if from.starts_with("--from=") => {
                assert!(stages.contains(&from["--from=".len()..]), "COPY {rest}");
            }
            ("COPY", Some((source, _))) => assert!(root.join(source).exists(), "COPY {rest}"),
            _ => {}
        }
    }
}

#[test]
fn every_promptyard_variable_is_a_setting() {
    let compose = yaml("docker-compose.yml");
    let mut checked = 0;
    for (name, service) in own(&compose) {
        let environment = service["environment"].as_object().unwrap();
        for variable in environment.keys() {
            assert!(Config::path_of(variable).is_some(), "{name}: {variable}");
            checked += 1;
        }
        let given = environment
            .iter()
            .filter_map(|(variable, value)| Some((variable.clone(), resolved(value.as_str()?))));
        let config = Config::load(None, given, &Overrides::default())
            .unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
        assert!(
            config.telemetry.listen.starts_with("0.0.0.0:"),
            "{name} cannot be scraped"
        );
        if service["command"][0] == "serve" {
            assert!(
                config.api.listen.starts_with("0.0.0.0:"),
                "{name} cannot be reached"
            );
        }
        for url in [config.broker.url.expose(), config.store.url.expose()] {
            let host = url::Url::parse(url).unwrap().host_str().unwrap().to_owned();
            let fixed = &services(&compose)[&host]["hostname"];
            assert_eq!(
                fixed,
                &Value::String(host),
                "{name}: the server's name must not change"
            );
        }
        assert!(
            seconds(service["stop_grace_period"].as_str().unwrap()) > config.worker.drain_s,
            "{name} would be killed while it drains"
        );
    }
    assert!(checked > 20);
    for (word, rest) in dockerfile().iter().filter(|(word, _)| word == "ENV") {
        for pair in rest
            .split_whitespace()
            .filter(|p| p.starts_with("PROMPTYARD_"))
        {
            let (variable, _) = pair.split_once('=').unwrap();
            assert!(Config::path_of(variable).is_some(), "{word} {variable}");
        }
    }
}

#[test]
fn env_example_names_every_variable_that_compose_reads() {
    let example = read(".env.example");
    let offered: BTreeSet<_> = example
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        .collect();
    let compose = read("docker-compose.yml");
    let cuda = read("docker-compose.cuda.yml");
    let passed_on: BTreeSet<_> = compose
        .lines()
        .filter_map(|line| line.trim().strip_suffix(':'))
        .collect();
    for (name, operator) in interpolations(&compose)
        .into_iter()
        .chain(interpolations(&cuda))
    {
        assert!(
            offered.contains(name),
            "${{{name}}} is missing in .env.example"
        );
        if name.ends_with("PASSWORD") {
            assert!(
                operator.starts_with(":?"),
                "compose must stop without {name}"
            );
            assert!(
                example.contains(&format!("\n{name}=\n")),
                "{name} has a default"
            );
        } else {
            assert!(operator.starts_with(":-"), "{name} needs a default");
        }
    }
    for variable in offered
        .iter()
        .filter(|name| name.starts_with("PROMPTYARD_"))
    {
        assert!(
            Config::path_of(variable).is_some(),
            "{variable} is no setting"
        );
        assert!(passed_on.contains(variable), "{variable} is not passed on");
    }
    for (name, service) in services(&yaml("docker-compose.yml")) {
        for (variable, value) in service["environment"].as_object().unwrap_or(&Map::new()) {
            let secret = variable.contains("PASS") || variable.contains("API_KEY");
            let value = value.as_str().unwrap_or("${");
            assert!(
                !secret || value.contains("${"),
                "{name}: {variable} holds a secret"
            );
        }
    }
}

#[test]
fn every_service_has_its_own_ports_and_a_health_check() {
    let compose = yaml("docker-compose.yml");
    let mut taken = BTreeSet::new();
    for (name, service) in services(&compose) {
        for port in strings(&service["ports"]) {
            let port = resolved(port);
            let parts: Vec<_> = port.split(':').collect();
            assert_eq!(parts[0], "127.0.0.1", "{name} is open to the network");
            assert!(
                taken.insert(parts[1].to_owned()),
                "{name}: port {} is taken",
                parts[1]
            );
        }
        let check = &service["healthcheck"];
        if check["disable"] == true {
            assert_eq!(
                service["restart"], "no",
                "{name} runs on without a health check"
            );
            continue;
        }
        assert_eq!(
            check["test"][0], "CMD",
            "{name}: a health check without a shell"
        );
        assert!(strings(&check["test"]).len() > 1, "{name}");
        for field in ["interval", "timeout", "start_period"] {
            assert!(
                seconds(check[field].as_str().unwrap()) > 0,
                "{name}.{field}"
            );
        }
        assert!(
            service["deploy"]["resources"]["limits"]["memory"].is_string(),
            "{name}"
        );
    }
    for (name, service) in own(&compose).filter(|(_, s)| s["healthcheck"]["disable"] != true) {
        let listen = service["environment"]["PROMPTYARD_TELEMETRY_LISTEN"]
            .as_str()
            .unwrap();
        let port = listen.rsplit_once(':').unwrap().1;
        let url = *strings(&service["healthcheck"]["test"]).last().unwrap();
        assert_eq!(url, format!("http://127.0.0.1:{port}/healthz"), "{name}");
    }
}

#[test]
fn every_depends_on_condition_can_be_met() {
    let compose = yaml("docker-compose.yml");
    let all = services(&compose);
    for (name, service) in all {
        for (needed, how) in service["depends_on"].as_object().unwrap_or(&Map::new()) {
            let target = all
                .get(needed)
                .unwrap_or_else(|| panic!("{name} needs {needed}"));
            match how["condition"].as_str().unwrap() {
                "service_healthy" => assert!(target["healthcheck"]["test"].is_array(), "{needed}"),
                "service_completed_successfully" => assert_eq!(target["restart"], "no", "{needed}"),
                other => panic!("{name} needs {needed} {other}"),
            }
        }
    }
    for name in services(&yaml("docker-compose.cuda.yml")).keys() {
        assert!(
            all.contains_key(name),
            "docker-compose.cuda.yml changes {name}"
        );
    }
}

#[test]
fn every_role_is_a_subcommand() {
    let compose = yaml("docker-compose.yml");
    let mut roles = BTreeSet::new();
    for (name, service) in own(&compose) {
        let command = strings(&service["command"]);
        let read = promptyard::cli::command()
            .try_get_matches_from([&["promptyard"], command.as_slice()].concat());
        read.unwrap_or_else(|error| panic!("{name} runs {command:?}: {error}"));
        roles.insert(command.join(" "));
    }
    for role in [
        "migrate",
        "route",
        "work --tier small",
        "work --tier large",
        "serve",
    ] {
        assert!(roles.contains(role), "nobody runs `promptyard {role}`");
    }
}
