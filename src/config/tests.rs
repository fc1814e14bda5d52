use std::time::Duration;

use anabranch_store::storage::Location;

use super::{Config, ConfigError};

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse("anabranch.toml", text, environment)
}

#[test]
fn the_environment_comes_before_the_file_and_the_file_before_the_default() {
    let config = parse("", &[]).expect("nothing is wrong with nothing");
    assert_eq!(config, Config::default());
    assert_eq!(config.server.listen, "127.0.0.1:8080");
    assert_eq!((config.log.reserve, config.log.retention_age), (64 << 20, None));

    let file = "[server]\nlisten = \"[::1]:80\"\nmax_body = \"1 MiB\"\n\n[log]\nretention_age = \"7 days\"\n[batch]\nkeep_versions = 2\n";
    let config = parse(file, &[]).expect("a sound file");
    assert_eq!((config.server.listen.as_str(), config.server.max_body), ("[::1]:80", 1 << 20));
    assert_eq!(config.log.retention_age, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!((config.batch.keep_versions, config.batch.scheduler), (2, true));

    let environment = [
        ("ANABRANCH__SERVER__LISTEN", "0.0.0.0:9090"),
        ("ANABRANCH__SERVER__HOSTS", "a.example, [fe80::1]:8443"),
        ("ANABRANCH__BATCH__SCHEDULER", "false"),
        ("ANABRANCH__SPEED__BATCH_RECORDS", "77"),
        ("ANABRANCH__LOG__RETENTION_BYTES", "10 GB"),
        ("ANABRANCHES", "not ours"),
        ("HOME", "/"),
    ];
    let config = parse(file, &environment).expect("sound variables");
    assert_eq!((config.server.listen.as_str(), config.server.max_body), ("0.0.0.0:9090", 1 << 20));
    assert_eq!(config.server.hosts, ["a.example", "[fe80::1]:8443"]);
    assert_eq!((config.batch.keep_versions, config.batch.scheduler), (2, false));
    assert_eq!((config.speed.batch_records, config.log.retention_bytes), (77, Some(10_000_000_000)));
}

#[test]
fn a_wrong_setting_is_refused_with_its_place_and_what_is_right() {
    for (file, variable, expected) in [
        (
            "[sped]\nbatch_records = 1",
            None,
            "anabranch.toml:1:2: unknown field `sped`, expected one of `server`, `log`, `kafka`, `storage`, `speed`, `archive`, `batch`",
        ),
        (
            "# Ours.\n[server]\nlisten_on = \"x\"",
            None,
            "anabranch.toml:3:1: unknown field `listen_on`, expected one of `listen`, `public`, `hosts`, `max_body`, `max_connections`, \
             `max_connections_per_address`",
        ),
        (
            "[log]\nreserve = \"lots\"",
            None,
            "anabranch.toml:2:11: `lots` isn't a size; write a whole number and a unit, such as `64 MiB`",
        ),
        (
            "[speed]\nbatch_wait = 20",
            None,
            "anabranch.toml:2:14: invalid type: integer `20`, expected a duration such as \"10 s\"",
        ),
        ("[speed]\nbatch_wait = \"0 s\"", None, "anabranch.toml:2:14: `0 s`: the duration must be longer than no time"),
        ("[speed]\nbatch_records = 0", None, "anabranch.toml:2:17: must be 1 or more"),
        (
            "[server]\nlisten = \"8080\"",
            None,
            "anabranch.toml:2:10: `8080` isn't an address and a port, such as `127.0.0.1:8080`",
        ),
        (
            "[server]\nhosts = [\"https://a.example\"]",
            None,
            "anabranch.toml:2:9: `https://a.example` isn't the name of a host, such as `analytics.example.com`, or one with a port, \
             such as `proxy.local:8443`",
        ),
        (
            "[server]\nhosts = 1",
            None,
            "anabranch.toml:2:9: expected names of hosts such as [\"analytics.example.com\"]",
        ),
        ("[speed", None, "anabranch.toml:1:7: unclosed table, expected `]`"),
        ("", Some(("ANABRANCH__LISTEN", "x")), "ANABRANCH__LISTEN: settings are called ANABRANCH__SECTION__KEY"),
        (
            "",
            Some(("ANABRANCH__BATCH__KEEP", "1")),
            "ANABRANCH__BATCH__KEEP: unknown field `keep`, expected one of `keep_versions`, `scheduler`, `timeout`",
        ),
        (
            "",
            Some(("ANABRANCH__BATCHES__KEEP", "1")),
            "ANABRANCH__BATCHES__KEEP: unknown field `batches`, expected one of `server`, `log`, `kafka`, `storage`, `speed`, `archive`, `batch`",
        ),
        (
            "",
            Some(("ANABRANCH__SPEED__IDLE_AFTER", "5")),
            "ANABRANCH__SPEED__IDLE_AFTER: invalid type: integer `5`, expected a duration such as \"10 s\"",
        ),
        (
            "",
            Some(("ANABRANCH__BATCH__SCHEDULER", "maybe")),
            "ANABRANCH__BATCH__SCHEDULER: invalid type: string \"maybe\", expected a boolean",
        ),
        (
            "[storage]\ncheckpoints = \"gs://bucket\"",
            None,
            "anabranch.toml:2:15: a place is a folder, such as `/srv/anabranch`, or `s3://bucket/prefix` and nothing more",
        ),
        (
            "[storage.options]\naws_endpiont = \"http://localhost\"",
            None,
            "anabranch.toml:1:1: `aws_endpiont` is no property of S3's client; such are `aws_endpoint`, `aws_region`, \
             `aws_access_key_id`, `aws_secret_access_key`, `aws_allow_http` and `timeout`",
        ),
        (
            "",
            Some(("ANABRANCH__STORAGE__OPTIONS__BUCKET", "b")),
            "ANABRANCH__STORAGE__OPTIONS__BUCKET: `bucket`: the bucket stands in the place, `s3://bucket/prefix`",
        ),
    ] {
        let error = parse(file, &variable.into_iter().collect::<Vec<_>>()).expect_err(expected);
        assert_eq!(error.to_string().replace('\n', " ").trim(), expected);
    }
}

#[test]
fn what_is_shown_reads_back_the_same() {
    let file = "[log]\nretention_age = \"36 h\"\nretention_bytes = \"3 GiB\"\n[speed]\nbatch_wait = \"5 ms\"\n";
    let config = parse(file, &[]).expect("a sound file");
    let shown = config.to_toml().expect("every setting can be written");
    assert!(shown.contains("retention_age = \"36 h\"") && shown.contains("reserve = \"64 MiB\""), "{shown}");
    assert_eq!(parse(&shown, &[]).expect("what was shown"), config);
}

#[test]
fn the_clients_properties_pass_through_and_secrets_are_not_shown() {
    let file = "[kafka]\nbrokers = \"a:9092\"\n[kafka.options]\n\"security.protocol\" = \"SASL_SSL\"";
    let password = [("ANABRANCH__KAFKA__OPTIONS__SASL_PASSWORD", "hunter2")];
    let config = parse(file, &password).expect("sound settings");
    let options = config.kafka.log_options().expect("a cluster");
    assert_eq!(options.properties["security.protocol"], "SASL_SSL");
    assert_eq!(options.properties["sasl.password"], "hunter2");
    let shown = config.to_toml().expect("shown");
    assert!(shown.contains("\"sasl.password\" = \"(not shown)\"") && !shown.contains("hunter2"), "{shown}");
    assert_eq!(parse("", &[]).expect("nothing").kafka.log_options().map(|options| options.brokers), None);
}

#[test]
fn the_storages_properties_pass_through_and_secrets_are_not_shown() {
    let file = "[storage]\ncheckpoints = \"s3://bucket/of/ours\"\noptions = { aws_region = \"here\" }";
    let secret = [("ANABRANCH__STORAGE__OPTIONS__AWS_SECRET_ACCESS_KEY", "hunter2")];
    let storage = parse(file, &secret).expect("sound settings").storage;
    let location = storage.checkpoints.clone().expect("a place");
    assert_eq!(location, Location::S3 { bucket: "bucket".to_owned(), prefix: "of/ours".into() });
    assert_eq!((&*storage.options["aws_region"], &*storage.options["aws_secret_access_key"]), ("here", "hunter2"));
    let shown = parse(file, &secret).expect("sound settings").to_toml().expect("shown");
    assert!(shown.contains("checkpoints = \"s3://bucket/of/ours\""), "{shown}");
    assert!(shown.contains("aws_secret_access_key = \"(not shown)\"") && !shown.contains("hunter2"), "{shown}");
}
