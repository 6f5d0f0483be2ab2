import type { Person } from "../session.ts"; export function Operator(_: {person: Person}) { return <p>operator</p>; }
