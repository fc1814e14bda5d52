//! `anabranch views partitions`

use std::process::ExitCode;

use super::decision::agreed;
use crate::cli::Decision;
use crate::failure::Failure;
use crate::platform::Platform;

/// Raises how many partitions a table's topic has. What that does to keys is said first.
pub async fn raise(name: &str, wanted: u32, decision: &Decision) -> Result<ExitCode, Failure> {
    let mut platform = Platform::load(&decision.project)?;
    let table = platform.table(name)?;
    if table.is_changelog() {
        return Err(Failure::usage(format!(
            "table `{name}` has a PRIMARY KEY: a row's versions of before and after would be in different partitions, and in no order; \
             give a new table as many partitions as it needs, and send it the rows"
        )));
    }
    platform.config.server.listen = "127.0.0.1:0".to_owned();
    let opened = platform.open().await?;
    let (topic, log) = (&table.topic, opened.own_log);
    let existing = log.bounds(topic)?.len() as u32;
    if existing == wanted {
        eprintln!("topic `{topic}` has {existing} partitions already");
        return Ok(ExitCode::SUCCESS);
    }
    if existing > wanted {
        return Err(Failure::usage(format!("topic `{topic}` has {existing} partitions, which can't be made fewer")));
    }
    let place = match &platform.config.kafka.brokers {
        Some(brokers) => format!("of the Kafka cluster at {brokers}, for all who use it,"),
        None => "of the embedded log".to_owned(),
    };
    let mut lines = vec![
        format!("topic `{topic}` {place} goes from {existing} partitions to {wanted}; that can't be taken back"),
        "records that are there stay where they are".to_owned(),
    ];
    if let Some(key) = table.partition_by {
        lines.push(format!(
            "a key's partition is its hash among as many as there are: records of one `{}` from now on may go to another partition \
             than those before, and are in no order with them",
            table.columns[key].name
        ));
    }
    if table.pin.is_some() {
        lines.push(format!("pinned records go to partition {} from now on, and not to {}", wanted - 1, existing - 1));
    }
    for unit in platform.catalog.units().iter().filter(|unit| unit.reads(name)) {
        let others =
            unit.shared().into_iter().map(|table| format!("`{}`", table.name)).filter(|it| *it != format!("`{name}`"));
        let others = others.collect::<Vec<_>>().join(" and ");
        for view in unit.views.iter().filter(|view| view.rows.looks_across()) {
            let view = &view.id.name;
            let until = if others.is_empty() { String::new() } else { format!("{others} has as many partitions and ") };
            lines.push(format!(
                "where roles are processes of their own, view `{view}` is incomplete until {until}`anabranch batch run {view}` has succeeded"
            ));
        }
    }
    lines.push("the watermark waits for the new partitions until they have had an event, or are idle".to_owned());
    agreed(decision, &lines)?;
    log.create_topic(topic, wanted)?;
    eprintln!("topic `{topic}` has {wanted} partitions");
    Ok(ExitCode::SUCCESS)
}
