import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { clock, language } from "../i18n.ts";
import { useValue } from "../hooks.ts";

const HEIGHT = 160;
const SPAN = 600;

/** Lines over the last ten minutes, one for each name. */
export function Plot({
  times,
  lines,
  label,
  digits = 0,
  dots = false,
}: {
  times: number[];
  lines: (number | null)[][];
  label: string;
  digits?: number;
  /** Shows each value, also one that stands alone. */
  dots?: boolean;
}) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const dark = useDark();
  const lang = useValue(language);
  const data: uPlot.AlignedData = [times, ...lines];
  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    const style = getComputedStyle(element);
    const colour = (name: string) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--soft"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: `12px ${style.fontFamily}`,
    };
    const made = new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { range: (_plot, _min, max) => [max - SPAN, max] },
          y: { range: (_plot, _min, max) => [0, Math.max(max * 1.1, digits ? 1 : 5)] },
        },
        axes: [
          {
            ...axis,
            values: (_plot, ticks) => ticks.map((tick) => clock(tick * 1000).slice(0, 5)),
            space: 70,
            size: 28,
          },
          {
            ...axis,
            values: (_plot, ticks) => ticks.map((tick) => tick.toLocaleString(lang)),
            size: 48,
            ...(digits ? {} : { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] }),
          },
        ],
        series: [
          {},
          ...lines.map((_, index) => ({
            stroke: colour(`--line-${index + 1}`),
            width: 2,
            points: { show: dots, size: 5 },
            ...(DASHES[index] ? { dash: DASHES[index] } : {}),
          })),
        ],
      },
      data,
      element,
    );
    plot.current = made;
    const resized = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    resized.observe(element);
    return () => {
      resized.disconnect();
      made.destroy();
    };
  }, [dark, lang, lines.length]);
  useEffect(() => plot.current?.setData(data));
  return <div class="plot" ref={box} role="img" aria-label={label} />;
}

// Lines differ by more than their colour.
const DASHES: (number[] | undefined)[] = [undefined, [8, 4], [2, 3], [12, 3, 2, 3]];

function useDark(): boolean {
  const [query] = useState(() => matchMedia("(prefers-color-scheme: dark)"));
  const [dark, setDark] = useState(query.matches);
  useEffect(() => {
    const changed = () => setDark(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, [query]);
  return dark;
}
