import type { ComponentChildren, JSX } from "preact";
import { useEffect, useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import { type Loaded, useNow } from "../hooks.ts";
import { clock, explain, t } from "../i18n.ts";
import type { Refusal } from "../refusal.ts";
import { secondsLeft } from "../retry.ts";
import { go } from "../router.ts";

/** A link within the page. */
export function Link({ href, ...rest }: JSX.IntrinsicElements["a"] & { href: string }) {
  const follow = (event: MouseEvent) => {
    if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(href);
  };
  return <a href={href} onClick={follow} {...rest} />;
}

/**
 * A screen's heading. It takes the focus when one arrives at the screen, so that screen readers begin there and the
 * next Tab goes on from there.
 */
export function Heading({
  children,
  before,
  focus = true,
}: {
  children: ComponentChildren;
  before?: ComponentChildren;
  focus?: boolean;
}) {
  const heading = useRef<HTMLHeadingElement>(null);
  useLayoutEffect(() => {
    if (focus && document.body.dataset.moved) heading.current?.focus({ preventScroll: true });
    document.body.dataset.moved = "yes"; // not when the page was just opened: then one begins at its top
  }, []);
  useEffect(() => {
    document.title = `${heading.current?.textContent ?? ""} · ${t("brand")}`;
  });
  return (
    <div class="heading">
      {before}
      <h1 ref={heading} tabIndex={-1}>
        {children}
      </h1>
    </div>
  );
}

type ButtonProps = Omit<JSX.IntrinsicElements["button"], "onClick"> & {
  kind?: "main" | "plain" | "danger" | "quiet";
  busy?: boolean;
  onClick?: () => unknown;
};

/**
 * A button that works once at a time: while what it began is under way, further clicks do nothing. It is not disabled
 * meanwhile, since the focus would be lost with that.
 */
export function Button({ kind = "plain", busy, onClick, class: more, children, ...rest }: ButtonProps) {
  const [working, setWorking] = useState(false);
  const once = useRef(false);
  const alive = useRef(true);
  useEffect(() => () => void (alive.current = false), []);
  const isBusy = busy || working;
  const press = async () => {
    if (once.current || busy || !onClick) return;
    once.current = true;
    const begun = onClick();
    try {
      if (begun instanceof Promise) {
        setWorking(true);
        await begun;
      }
    } finally {
      once.current = false;
      if (alive.current) setWorking(false);
    }
  };
  return (
    <button
      type="button"
      class={`button ${kind} ${more ?? ""}`}
      aria-busy={isBusy}
      onClick={onClick ? () => void press() : undefined}
      {...rest}
    >
      {children}
    </button>
  );
}

export function Field({
  label,
  hint,
  error,
  children,
}: {
  label: string;
  hint?: string | undefined;
  error?: string | undefined;
  children: (id: string, described: string) => ComponentChildren;
}) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children(id, `${id}-hint`)}
      <p id={`${id}-hint`} class={error ? "hint wrong" : "hint"}>
        {error ?? hint ?? ""}
      </p>
    </div>
  );
}

interface Text {
  label: string;
  value: string;
  onText: (text: string) => void;
}

interface Line extends Text {
  hint?: string;
  error?: string | undefined;
  type?: "date" | "number" | "search";
  min?: string;
  max?: string | number;
  maxLength?: number;
  required?: boolean;
  autocomplete?: "off";
  enterkeyhint?: "search";
}

/** A field with one line to fill in; `onText` is told at each key what it holds. */
export function Input({ label, hint, error, onText, ...rest }: Line) {
  return (
    <Field label={label} hint={hint} error={error}>
      {(id, described) => (
        <input
          id={id}
          {...(hint || error ? { "aria-describedby": described } : {})}
          onInput={(event) => onText(event.currentTarget.value)}
          // Preact's types tell the inputs of each type apart; here the type is the caller's.
          {...(rest as JSX.IntrinsicElements["input"])}
        />
      )}
    </Field>
  );
}

/** A field for words that have to be there. */
export function Words({ label, value, onText, readOnly }: Text & { readOnly?: boolean }) {
  return (
    <Field label={label}>
      {(id) => (
        <textarea
          id={id}
          maxLength={500}
          required
          readOnly={readOnly ?? false}
          value={value}
          onInput={(event) => onText(event.currentTarget.value)}
        />
      )}
    </Field>
  );
}

/** A modal dialog; without `onClose` it stays. The browser keeps the focus within it and gives it back afterwards. */
export function Dialog({
  title,
  onClose,
  children,
  wide,
}: {
  title: string;
  onClose?: () => void;
  children: ComponentChildren;
  wide?: boolean;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useLayoutEffect(() => {
    const opened = dialog.current;
    const before = document.activeElement;
    opened?.showModal();
    return () => {
      opened?.close();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  return (
    <dialog
      ref={dialog}
      aria-labelledby={id}
      class={wide ? "wide" : ""}
      onCancel={(event) => {
        event.preventDefault();
        onClose?.();
      }}
    >
      <header>
        <h2 id={id}>{title}</h2>
        {onClose && (
          <button type="button" class="close" aria-label={t("close")} onClick={onClose}>
            <svg viewBox="0 0 20 20" aria-hidden="true">
              <path d="M5 5l10 10M15 5L5 15" />
            </svg>
          </button>
        )}
      </header>
      {children}
    </dialog>
  );
}

export function Problem({ refused, title, onAgain }: { refused: Refusal; title?: string; onAgain?: () => unknown }) {
  const text = explain(refused);
  return (
    <div class="notice bad" role="alert">
      <p>
        <strong>{title ?? t("failed")}</strong>
      </p>
      <p>{text}</p>
      {refused.fields.length > 0 && (
        <ul>
          {refused.fields.map((one) => (
            <li key={one.field}>
              {one.field}: {one.description}
            </li>
          ))}
        </ul>
      )}
      {text !== refused.message && refused.message && (
        <details>
          <summary>{t("details")}</summary>
          <p lang="en">{refused.message}</p>
        </details>
      )}
      {onAgain && <Button onClick={onAgain}>{t("tryAgain")}</Button>}
    </div>
  );
}

/** What was read, or that it is being read, or why it could not be. */
export function Read<T>({ from, children }: { from: Loaded<T>; children: (data: T) => ComponentChildren }) {
  return (
    <>
      {from.error && <Problem refused={from.error} title={t("failedLoad")} onAgain={from.reload} />}
      {from.data !== undefined ? children(from.data) : !from.error && <Loading />}
    </>
  );
}

export function Loading() {
  return (
    <p class="loading" role="status">
      <span class="dots" aria-hidden="true" />
      {t("loading")}
    </p>
  );
}

/** That there is nothing to show; `screen`: it is all that is on the screen, and so its heading. */
export function Empty({
  title,
  screen,
  children,
}: {
  title: string;
  screen?: boolean;
  children?: ComponentChildren;
}) {
  return (
    <div class="empty">
      {screen ? <h1 class="title">{title}</h1> : <p class="title">{title}</p>}
      {children}
    </div>
  );
}

/** When what is on the screen was true, and a button to read it anew. */
export function AsOf({ at, zone, onRefresh }: { at: number | undefined; zone?: string; onRefresh: () => unknown }) {
  return (
    <p class="as-of">
      <span class="number">{at === undefined ? "" : t("asOf", clock(at, zone))}</span>
      <Button kind="quiet" onClick={onRefresh}>
        {t("refresh")}
      </Button>
    </p>
  );
}

/** Seconds until a request is repeated. Screen readers are told once by the text around it, not every second. */
export function Countdown({ since, until }: { since: number; until: number }) {
  const now = useNow();
  const left = secondsLeft(until, now);
  const part = Math.min(1, Math.max(0, (until - now) / Math.max(1, until - since)));
  const turn = 2 * Math.PI * 20;
  return (
    <span class="countdown" role="timer" aria-live="off" aria-label={left ? t("againIn", left) : t("sending")}>
      <svg viewBox="0 0 48 48" aria-hidden="true">
        <circle cx="24" cy="24" r="20" class="ring" />
        <circle cx="24" cy="24" r="20" class="rest" stroke-dasharray={`${turn * part} ${turn}`} />
        <text x="24" y="24">
          {left}
        </text>
      </svg>
    </span>
  );
}

export type Tone = "good" | "wait" | "bad" | "over" | "info";

export function Badge({ tone, children }: { tone: Tone; children: ComponentChildren }) {
  return <span class={`badge ${tone}`}>{children}</span>;
}

/** Names with their values. */
export function Facts({ of }: { of: [name: string, value: ComponentChildren][] }) {
  return (
    <dl class="facts">
      {of
        .filter(([, value]) => value !== "" && value !== undefined)
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}

/** What an action will do, before it is done. */
export function Effects({ of }: { of: string[] }) {
  return (
    <div class="effects" aria-live="polite">
      <h3>{t("willHappen")}</h3>
      <ul>
        {of.map((each) => (
          <li key={each}>{each}</li>
        ))}
      </ul>
    </div>
  );
}

/**
 * A table; on a phone each row is a card, whose values have the columns' names beside them, so that nothing has to be
 * scrolled sideways.
 */
export function Table({
  caption,
  head,
  children,
}: {
  caption: string;
  head: ComponentChildren[];
  children: ComponentChildren;
}) {
  const table = useRef<HTMLTableElement>(null);
  useLayoutEffect(() => {
    const names = [...(table.current?.tHead?.rows[0]?.cells ?? [])].map((cell) => cell.textContent ?? "");
    for (const row of table.current?.tBodies[0]?.rows ?? [])
      for (const [index, cell] of [...row.cells].entries()) {
        const name = names[index] ?? "";
        if (cell.dataset.name !== name) cell.dataset.name = name;
      }
  });
  return (
    <div class="table" role="region" aria-label={caption} tabIndex={0}>
      <table ref={table}>
        <caption class="unseen">{caption}</caption>
        <thead>
          <tr>
            {head.map((each, index) => (
              <th key={index} scope="col">
                {each}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>{children}</tbody>
      </table>
    </div>
  );
}
