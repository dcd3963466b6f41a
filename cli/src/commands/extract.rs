//! `fettler extract`: one part of a backup in an open format, into a file or the standard output.

use std::{io::IsTerminal, path::Path, sync::Arc, time::Duration};

use fettler_engine::{ExtractFormat, ExtractReport, ProgressMeter, folder_of};
use fettler_jobs::{ExtractRequest, READER_GONE, Services, extract, extract_format};
use fettler_repository::{Manifest, TenantRepository};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    args::ExtractArgs,
    failure::{Exit, Failure, Outcome},
    select,
    services::Use,
    units,
};

/// How often progress is drawn.
const DRAWN_EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn run(app: &App, args: &ExtractArgs) -> Outcome {
    if app.output.json && args.output.is_none() {
        return Err(Failure::usage(
            "`--json` and the part itself cannot both go to the standard output",
            "name a file with `--output`",
        ));
    }
    let repository = app.repository(Use::Read).await?;
    let summary = select::backup(&repository, &args.backup.backup).await?;
    let manifest = repository.manifest(summary.id).await?;
    let format = extract_format(&manifest, args.format)?;
    let report = match &args.output {
        Some(path) => into_file(app, args, path, &repository, &manifest).await?,
        None => {
            if format.is_binary() && std::io::stdout().is_terminal() {
                return Err(Failure::usage(
                    format!("{format} is no text, and the standard output is a terminal"),
                    "name a file with `--output`, or another form with `--format`",
                ));
            }
            let mut out = tokio::io::stdout();
            match write(app, args, &repository, &manifest, &mut out).await {
                // Whoever reads has enough.
                Err(failure) if failure.problem.code == READER_GONE => return Ok(Exit::Done),
                written => written?,
            }
        }
    };
    let told = format!(
        "{}: {}, {} as {format}",
        args.path,
        units::things(report.rows, noun(format)),
        units::size(report.bytes)
    );
    match &args.output {
        Some(path) => app.output.result(
            &json!({
                "backup": summary.id,
                "path": args.path,
                "format": format,
                "file": path,
                "rows": report.rows,
                "bytes": report.bytes,
            }),
            || format!("{told}, in {}", path.display()),
        ),
        None => app.output.notice(&told),
    }
    Ok(Exit::Done)
}

/// What is counted.
const fn noun(format: ExtractFormat) -> &'static str {
    match format {
        ExtractFormat::Bson => "document",
        ExtractFormat::Rdb => "key",
        _ => "row",
    }
}

/// Writes a file that is there once it is whole and durable; until then its bytes lie beside it under another name.
async fn into_file(
    app: &App,
    args: &ExtractArgs,
    path: &Path,
    repository: &TenantRepository,
    manifest: &Manifest,
) -> Result<ExtractReport, Failure> {
    let failed = |error: &std::io::Error| {
        Failure::local(format!("{} cannot be written", path.display()), error)
    };
    if path.is_dir() || (path.exists() && !args.overwrite) {
        return Err(Failure::usage(
            format!("{} is there already", path.display()),
            "name another file, or say `--overwrite` to replace it",
        ));
    }
    let part = NamedTempFile::with_prefix_in(".fettler-extract-", folder_of(path))
        .map_err(|error| failed(&error))?;
    let file = part.as_file().try_clone().map_err(|error| failed(&error))?;
    let mut file = tokio::fs::File::from_std(file);
    let report = write(app, args, repository, manifest, &mut file).await?;
    file.sync_all().await.map_err(|error| failed(&error))?;
    let kept = if args.overwrite {
        part.persist(path)
    } else {
        part.persist_noclobber(path)
    };
    kept.map_err(|error| failed(&error.error))?;
    Ok(report)
}

/// Writes the part, shows how far it is, and ends in good order when asked to.
async fn write(
    app: &App,
    args: &ExtractArgs,
    repository: &TenantRepository,
    manifest: &Manifest,
    out: &mut (dyn AsyncWrite + Send + Unpin),
) -> Result<ExtractReport, Failure> {
    let services = app.services().await?;
    let scratch = services.scratch();
    let request = ExtractRequest {
        part: &args.path,
        format: args.format,
        scratch: &scratch,
        parallel: services.parallel(),
        stop: CancellationToken::new(),
        progress: Arc::new(ProgressMeter::default()),
    };
    let mut is_asked_to_stop = false;
    let work = extract(repository, manifest, &request, out);
    tokio::pin!(work);
    let bar = (app.output.draws && args.output.is_some()).then(|| {
        ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_prefix("extract")
    });
    let mut drawn = tokio::time::interval(DRAWN_EVERY);
    let written = loop {
        tokio::select! {
            written = &mut work => break written,
            _ = tokio::signal::ctrl_c(), if !is_asked_to_stop => {
                is_asked_to_stop = true;
                request.stop.cancel();
            }
            _ = drawn.tick() => {
                if let Some(bar) = &bar {
                    let progress = request.progress.read();
                    bar.set_message(units::size(progress.bytes));
                    bar.set_position(progress.bytes);
                }
            }
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(written?)
}
