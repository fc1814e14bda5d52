//! The layers' numbers, as `/metrics` shows them.

use anabranch_batch_layer::JobMetrics;
use anabranch_batch_layer::archive::Archiver;
use anabranch_batch_layer::jobs::JobQueue;
use anabranch_log::position::Partition;
use anabranch_serving::Measure;
use anabranch_speed_layer::{OutputStates, OutputStatus, SpeedMetrics};

/// The numbers of one pipeline of the speed layer: of a table, or of one of its partitions.
pub fn speed(table: &str, partition: Option<Partition>, numbers: &SpeedMetrics) -> Vec<Measure> {
    let counter = |name: &str, help, value| Measure::counter(name, help, value);
    let gauge = |name: &str, help, value| Measure::gauge(name, help, value);
    let stopped = f64::from(u8::from(numbers.stopped.is_some()));
    let mut all = vec![
        counter("anabranch_speed_events", "Events folded into views", numbers.events as f64),
        counter("anabranch_speed_batches", "Micro-batches folded", numbers.batches as f64),
        counter("anabranch_speed_rejected", "Records of the log that were no events", numbers.rejected as f64),
        counter("anabranch_speed_late", "Events too late for a window, by view", numbers.late as f64),
        counter("anabranch_speed_fold_seconds", "Time spent folding", numbers.fold_seconds),
        counter("anabranch_speed_snapshots", "Snapshots published", numbers.snapshots as f64),
        counter("anabranch_speed_snapshot_seconds", "Time spent on snapshots", numbers.snapshot_seconds),
        counter("anabranch_speed_checkpoints", "Checkpoints stored", numbers.checkpoints as f64),
        counter(
            "anabranch_speed_checkpoint_failures",
            "Checkpoints that could not be stored",
            numbers.checkpoint_failures as f64,
        ),
        gauge("anabranch_speed_checkpoint_bytes", "Size of the last checkpoint", numbers.checkpoint_bytes as f64),
        gauge("anabranch_speed_state_rows", "Rows of state over all views", numbers.state_rows as f64),
        gauge("anabranch_speed_state_bytes", "Bytes of state over all views", numbers.state_bytes as f64),
        gauge("anabranch_speed_stopped", "1 if the source has stopped", stopped),
    ];
    let help = "From the log's taking a record to the snapshot that has it";
    all.push(Measure::histogram("anabranch_speed_freshness_seconds", help, numbers.freshness.clone()));
    if let Some(at) = numbers.checkpoint_at {
        let help = "When the last checkpoint was stored, in seconds since 1970";
        all.push(gauge("anabranch_speed_checkpoint_timestamp_seconds", help, at as f64 / 1e6));
    }
    for (view, stopped) in &numbers.views {
        let help = "1 if evaluating the view has failed, while its source goes on";
        let stopped = f64::from(u8::from(stopped.is_some()));
        all.push(gauge("anabranch_speed_view_stopped", help, stopped).of("view", view));
    }
    if let Some(partition) = partition {
        all = all.into_iter().map(|measure| measure.of("partition", partition)).collect();
    }
    all.extend(Measure::lost("anabranch_speed_lost_offsets", &numbers.lost));
    all.into_iter().map(|measure| measure.of("table", table)).collect()
}

/// Why a partition's pipeline, or a view of it, has stopped, if it has.
pub fn speed_stops(table: &str, partition: Partition, numbers: &SpeedMetrics) -> Vec<String> {
    let of = format!("table `{table}` partition {partition}");
    let source = numbers.stopped.iter().map(|why| format!("{of}: its source has stopped: {why}"));
    let views = numbers.views.iter().filter_map(|(view, why)| Some((view, why.as_ref()?)));
    let views = views.map(|(view, why)| format!("{of}: view `{view}` has stopped: {why}"));
    source.chain(views).collect()
}

/// The numbers of the outputs.
pub fn outputs(states: &OutputStates) -> Vec<Measure> {
    let of_one = |((view, partition), state): ((String, Partition), OutputStatus)| {
        let counter = |name: &str, help, value: u64| Measure::counter(name, help, value as f64);
        let stopped = f64::from(u8::from(state.stopped.is_some()));
        let mut all = vec![
            counter("anabranch_output_records", "Records written to a view's topic", state.records),
            counter("anabranch_output_failures", "Writes that came to nothing and were tried again", state.failures),
            counter("anabranch_output_rejected", "Records of the log that were no events", state.rejected),
            Measure::gauge("anabranch_output_stopped", "1 if it has stopped", stopped),
        ];
        all = all.into_iter().map(|measure| measure.of("partition", partition)).collect();
        all.extend(Measure::lost("anabranch_output_lost_offsets", &state.lost));
        all.into_iter().map(|measure| measure.of("view", &view)).collect::<Vec<_>>()
    };
    states.all().into_iter().flat_map(of_one).collect()
}

/// How a table's archive stands.
pub fn archive(archiver: &Archiver) -> Vec<Measure> {
    let status = archiver.status().borrow().clone();
    let stopped = f64::from(u8::from(status.stopped.is_some()));
    let mut all = vec![
        Measure::counter("anabranch_archive_rows", "Events archived", status.rows as f64),
        Measure::gauge("anabranch_archive_stopped", "1 if archiving has stopped", stopped),
    ];
    for (partition, waiting) in status.waiting() {
        let help = "Records of the log that wait to be archived";
        all.push(Measure::gauge("anabranch_archive_lag_records", help, waiting as f64).of("partition", partition));
    }
    all.extend(Measure::lost("anabranch_archive_lost_offsets", &status.lost));
    all.into_iter().map(|measure| measure.of("table", &archiver.table().name)).collect()
}

/// Why a table's archive has stopped or fails, if it does.
pub fn archive_stop(archiver: &Archiver) -> Option<String> {
    let status = archiver.status().borrow().clone();
    let (what, why) = match (status.stopped, status.failing) {
        (Some(why), _) => ("has stopped", why),
        (None, Some(why)) => ("fails, and is tried again", why),
        (None, None) => return None,
    };
    Some(format!("table `{}`: archiving {what}: {why}", archiver.table().name))
}

/// Why the history of runs can't be written, if it can't.
pub fn jobs_trouble(jobs: &JobQueue) -> Option<String> {
    let why = jobs.trouble()?;
    Some(format!("the history of runs can't be written, so no jobs are taken: {why}"))
}

/// What became of jobs.
pub fn jobs(numbers: &JobMetrics) -> Vec<Measure> {
    let help = "Batch jobs that wait or are at work";
    let open = [("queued", numbers.queued), ("running", numbers.running)];
    let open = open.map(|(state, count)| Measure::gauge("anabranch_jobs", help, count as f64).of("state", state));
    let runs = numbers.runs.iter().map(|(view, state, counts)| {
        let help = "How long batch runs of a view took, by how they ended";
        Measure::histogram("anabranch_run_seconds", help, counts.clone()).of("view", view).of("state", state)
    });
    let help = "How often the clock was found to be set back, from which on schedules were followed anew";
    let set_back = Measure::counter("anabranch_schedule_clock_set_back", help, numbers.set_back as f64);
    let schedules = numbers.schedules.iter().flat_map(|schedule| {
        let help = "The first time of a view's schedule that no run has dealt with, in seconds since 1970";
        let due =
            schedule.due.map(|due| Measure::gauge("anabranch_schedule_due_timestamp_seconds", help, due as f64 / 1e6));
        let help = "Scheduled runs of a view that have failed in succession";
        let failures = Measure::gauge("anabranch_schedule_failures", help, f64::from(schedule.failures));
        due.into_iter().chain([failures]).map(|measure| measure.of("view", &schedule.view))
    });
    open.into_iter().chain(runs).chain([set_back]).chain(schedules).collect()
}
