import { useEffect } from "preact/hooks";
import { useValue } from "../hooks.ts";
import { Value } from "../value.ts";

const said = new Value<{ text: string } | null>(null);

/** Says something short at the screen's edge, also to screen readers. */
export function say(text: string): void {
  said.set({ text });
}

export function Toast() {
  const now = useValue(said);
  useEffect(() => {
    if (!now) return;
    const timer = setTimeout(() => said.set(null), 6000);
    return () => clearTimeout(timer);
  }, [now]);
  return (
    <div class="toast" role="status" aria-live="polite">
      {now && <p>{now.text}</p>}
    </div>
  );
}
