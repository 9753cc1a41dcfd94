//! Bars, one picture a metric.

use crate::peers::Kind;
use crate::report::Report;
use crate::work::Metric;
use anyhow::Result;
use plotters::prelude::*;
use std::path::Path;

const PLOTTED: [Metric; 6] = [
    Metric::Stream,
    Metric::StreamCpu,
    Metric::SmallDatagrams,
    Metric::RoundTrip,
    Metric::RoundTripLoaded,
    Metric::Connections,
];
const WIDTH: u32 = 760;
const ROW: u32 = 34;
const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
const OTHERS: RGBColor = RGBColor(0xb8, 0xbf, 0xc6);

/// `performance-METRIC.svg` in the folder, for the metrics that matter most.
pub fn plots(report: &Report, folder: &Path) -> Result<()> {
    for metric in PLOTTED {
        let bars: Vec<_> =
            report.kinds().into_iter().filter_map(|kind| Some((kind, report.spread(kind, metric)?))).collect();
        let Some(most) = bars.iter().map(|(_, spread)| spread.most).max_by(f64::total_cmp) else { continue };
        let (word, title) = metric.words();
        let file = folder.join(format!("performance-{}.svg", word.replace('_', "-")));
        let count = bars.len();
        let root = SVGBackend::new(&file, (WIDTH, ROW * count as u32 + 90)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(150)
            .build_cartesian_2d(0.0..most * 1.08, (0..count).into_segmented())?;
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(row) => bars.get(count - 1 - row).map_or("", |(kind, _)| kind.name()).to_owned(),
            SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
        };
        chart.configure_mesh().disable_y_mesh().y_labels(count).y_label_formatter(&name).draw()?;
        for (row, (kind, spread)) in bars.iter().rev().enumerate() {
            let colour = if *kind == Kind::Agents { OURS } else { OTHERS };
            let ends = [(0.0, SegmentValue::Exact(row)), (spread.median, SegmentValue::Exact(row + 1))];
            let mut bar = Rectangle::new(ends, colour.filled());
            bar.set_margin(5, 5, 0, 0);
            chart.draw_series([bar])?;
            let range = [spread.least, spread.most].map(|value| (value, SegmentValue::CenterOf(row)));
            chart.draw_series([PathElement::new(range.to_vec(), BLACK)])?;
        }
        root.present()?;
    }
    Ok(())
}
