//! Prometheus scrapes what the compose file runs, and dashboards and alert rules draw on metrics and
//! labels that the binary declares.

use std::{collections::BTreeSet, fs, path::Path};

use promptyard::metrics::{ALL, Metric, MetricKind};
use serde_json::Value;

const DASHBOARDS: &str = "ops/grafana/dashboards";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Name and parsed content of each dashboard.
fn dashboards() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(DASHBOARDS);
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| {
            let board = serde_json::from_str(&read(&format!("{DASHBOARDS}/{name}")));
            (
                name.clone(),
                board.unwrap_or_else(|error| panic!("{name}: {error}")),
            )
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!found.is_empty());
    found
}

/// The declared metric behind a series' name: histograms appear as `_bucket`, `_sum` and `_count`.
fn declared(series: &str) -> Option<&'static Metric> {
    ALL.iter().find(|metric| match metric.kind {
        MetricKind::Histogram => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| series.strip_suffix(suffix) == Some(metric.name)),
        MetricKind::Counter | MetricKind::Gauge => series == metric.name,
    })
}

/// Asserts that every `promptyard_…` series of an expression, and every label that selects among its
/// values, is declared; returns the metrics that were found.
fn check_expression(place: &str, expression: &str) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    for (at, _) in expression.match_indices("promptyard_") {
        let rest = &expression[at..];
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let (series, rest) = rest.split_at(end);
        let metric = declared(series).unwrap_or_else(|| panic!("{place}: no metric {series}"));
        found.insert(metric.name);
        let Some(selectors) = rest.strip_prefix('{') else {
            continue;
        };
        for selector in selectors.split('}').next().unwrap().split(',') {
            let label = selector.split(['=', '!']).next().unwrap().trim();
            assert!(
                metric.labels.contains(&label),
                "{place}: {series} has no label {label}"
            );
        }
    }
    found
}

#[test]
fn every_panel_has_a_source_and_an_expression_over_declared_metrics() {
    let source = yaml("ops/grafana/provisioning/datasources/prometheus.yml");
    let uid = &source["datasources"][0]["uid"];
    let mut drawn = BTreeSet::new();
    let mut uids = BTreeSet::new();
    for (name, board) in dashboards() {
        assert!(
            uids.insert(board["uid"].to_string()),
            "{name}: its uid is taken"
        );
        let mut ids = BTreeSet::new();
        for panel in list(&board["panels"]) {
            let place = format!("{name}: {}", panel["title"]);
            assert!(
                ids.insert(panel["id"].as_u64().unwrap()),
                "{place}: its id is taken"
            );
            if panel["type"] == "row" {
                continue;
            }
            assert!(!list(&panel["targets"]).is_empty(), "{place} draws nothing");
            assert_eq!(&panel["datasource"]["uid"], uid, "{place}");
            for target in list(&panel["targets"]) {
                assert_eq!(&target["datasource"]["uid"], uid, "{place}");
                let expression = target["expr"].as_str().unwrap();
                assert!(
                    !expression.trim().is_empty(),
                    "{place} has an empty expression"
                );
                drawn.extend(check_expression(&place, expression));
            }
        }
    }
    let forgotten: Vec<_> = ALL
        .iter()
        .map(|metric| metric.name)
        // Steps are the count of the step-time histogram, which is drawn.
        .filter(|name| *name != promptyard::metrics::ENGINE_STEPS)
        .filter(|name| !drawn.contains(name))
        .collect();
    assert!(forgotten.is_empty(), "no dashboard draws {forgotten:?}");
}

#[test]
fn every_alert_watches_declared_metrics_and_says_what_to_do() {
    let mut names = BTreeSet::new();
    for group in list(&yaml("ops/alerts.yml")["groups"]) {
        for rule in list(&group["rules"]) {
            let name = rule["alert"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} stands twice");
            check_expression(name, rule["expr"].as_str().unwrap());
            let severity = rule["labels"]["severity"].as_str().unwrap();
            assert!(
                ["critical", "warning", "info"].contains(&severity),
                "{name}"
            );
            for text in ["summary", "description"] {
                assert!(
                    rule["annotations"][text].is_string(),
                    "{name} has no {text}"
                );
            }
        }
    }
    assert!(names.len() >= 5, "{names:?}");
}

#[test]
fn prometheus_scrapes_every_role_where_it_listens() {
    let services = yaml("docker-compose.yml")["services"].clone();
    let prometheus = yaml("ops/prometheus.yml");
    let mut scraped = BTreeSet::new();
    for job in list(&prometheus["scrape_configs"]) {
        for lookup in list(&job["dns_sd_configs"]) {
            let name = lookup["names"][0].as_str().unwrap();
            let listen = &services[name]["environment"]["PROMPTYARD_TELEMETRY_LISTEN"];
            let listen = listen
                .as_str()
                .unwrap_or_else(|| panic!("no service {name}"));
            assert_eq!(listen, format!("0.0.0.0:{}", lookup["port"]), "{name}");
            assert_eq!(
                job["job_name"], name,
                "alerts know the roles by their services' names"
            );
            scraped.insert(name.to_owned());
        }
        for fixed in list(&job["static_configs"]) {
            let target = fixed["targets"][0].as_str().unwrap();
            let (host, port) = target.split_once(':').unwrap();
            if host == "127.0.0.1" {
                continue;
            }
            let exposed = &services[host]["expose"];
            assert!(
                list(exposed).iter().any(|p| p == port),
                "{target} is not exposed"
            );
            scraped.insert(host.to_owned());
        }
    }
    for (name, service) in services.as_object().unwrap() {
        let has_metrics = !list(&service["expose"]).is_empty() && service["restart"] != "no";
        assert_eq!(scraped.contains(name), has_metrics, "{name}");
    }
}

#[test]
fn every_path_inside_a_container_is_mounted_there() {
    let services = yaml("docker-compose.yml")["services"].clone();
    let mounted = |service: &str, path: &str| {
        list(&services[service]["volumes"]).iter().any(|mount| {
            let mut parts = mount.as_str().unwrap().split(':');
            let (source, target) = (parts.next().unwrap(), parts.next().unwrap());
            path.strip_prefix(target).is_some_and(|rest| {
                let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("{source}{rest}"));
                file.exists()
            })
        })
    };
    for file in list(&yaml("ops/prometheus.yml")["rule_files"]) {
        assert!(mounted("prometheus", file.as_str().unwrap()), "{file}");
    }
    let flag = services["prometheus"]["command"][0].as_str().unwrap();
    let config = flag.strip_prefix("--config.file=").unwrap();
    assert!(mounted("prometheus", config), "{config}");
    let provider = yaml("ops/grafana/provisioning/dashboards/promptyard.yml");
    let folder = provider["providers"][0]["options"]["path"]
        .as_str()
        .unwrap();
    assert!(mounted("grafana", folder), "{folder}");
    let home = &services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"];
    assert!(mounted("grafana", home.as_str().unwrap()), "{home}");
    let datasource = yaml("ops/grafana/provisioning/datasources/prometheus.yml");
    let url = datasource["datasources"][0]["url"].as_str().unwrap();
    let host = url::Url::parse(url).unwrap().host_str().unwrap().to_owned();
    assert!(services[&host].is_object(), "the data source asks {url}");
}
