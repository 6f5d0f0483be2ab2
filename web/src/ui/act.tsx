import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import type { Answer } from "../asks.ts";
import { doing } from "../doing.ts";
import { useValue } from "../hooks.ts";
import { t } from "../i18n.ts";
import type { Refusal } from "../refusal.ts";
import { Button, Dialog, Effects, Problem } from "./parts.tsx";
import { Pending } from "./pending.tsx";

/** A dialog that shows what an action will do, and then does it. */
export function Act<T>({
  title,
  label,
  danger,
  effects,
  ready = true,
  run,
  onDone,
  onClose,
  wide,
  children,
}: {
  title: string;
  label: string;
  danger?: boolean;
  /** What it will do; nothing is done before there is something here. */
  effects: string[];
  ready?: boolean;
  /** Does it. It is called on doing.perform with this dialog's title. */
  run: () => Promise<Answer<T>>;
  onDone: (response: T) => void;
  onClose: () => void;
  wide?: boolean;
  children?: ComponentChildren;
}) {
  const [refused, setRefused] = useState<Refusal | null>(null);
  const pending = useValue(doing.pending);
  const mine = pending.find((ask) => ask.about.title === title);
  const can = ready && effects.length > 0;
  const press = async () => {
    if (!can) return;
    setRefused(null);
    const answer = await run();
    if ("answer" in answer) onDone(answer.answer);
    else if ("refused" in answer) setRefused(answer.refused);
  };
  return (
    <Dialog title={title} onClose={onClose} wide={wide ?? false}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void press();
        }}
      >
        {children}
        {effects.length > 0 && <Effects of={effects} />}
        {mine?.waiting && <Pending asks={doing} name={() => title} only={(ask) => ask === mine} />}
        {refused && <Problem refused={refused} />}
        <div class="actions">
          <Button onClick={onClose}>{t("cancelDialog")}</Button>
          <button
            type="submit"
            class={`button ${danger ? "danger" : "main"}`}
            disabled={!can}
            aria-busy={mine !== undefined}
          >
            {mine ? t("working") : label}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
